package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairway.dev/fairway/standalone/internal/runtime/initspec"
)

// container is one container of a Pod.
type container struct {
	id        string
	sandbox   *sandbox
	config    *runtimeapi.ContainerConfig
	image     image
	command   command
	start     *initspec.Start
	createdAt time.Time

	mu         sync.Mutex
	starting   bool
	removed    bool
	state      runtimeapi.ContainerState
	startedAt  time.Time
	finishedAt time.Time
	exitCode   int
	reason     string
	message    string
	cgroup     string
	init       *initProcess
	streams    *containerStreams
	resources  *runtimeapi.LinuxContainerResources
	sample     cpuSample
	// finished is closed once the state is EXITED.
	finished chan struct{}
}

func (c *container) name() string { return c.config.GetMetadata().GetName() }

// createContainer settles everything that can be wrong with a container before
// anything is made.
func (r *Runtime) createContainer(sandboxID string, config *runtimeapi.ContainerConfig) (string, error) {
	s, err := r.sandbox(sandboxID)
	if err != nil {
		return "", err
	}
	img := newImage(config.GetImage())
	cmd, err := r.images.command(img.ref, config.GetCommand(), config.GetArgs())
	if err != nil {
		return "", err
	}
	c := &container{
		id: newID(), sandbox: s, config: config, image: img, command: cmd, createdAt: time.Now(),
		state: runtimeapi.ContainerState_CONTAINER_CREATED, finished: make(chan struct{}), resources: config.GetLinux().GetResources(),
	}
	if c.start, err = r.startSpec(c); err != nil {
		return "", fmt.Errorf("container %s: %w", c.name(), err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return "", errors.New("the node is shutting down")
	}
	r.containers[c.id] = c
	return c.id, nil
}

// startContainer runs the container's command.
func (r *Runtime) startContainer(c *container) error {
	c.mu.Lock()
	if c.state != runtimeapi.ContainerState_CONTAINER_CREATED || c.starting || c.removed {
		c.mu.Unlock()
		return fmt.Errorf("container %s has been started before", c.name())
	}
	c.starting = true
	c.mu.Unlock()
	err := r.run(c)
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	code := initspec.CodeSetup
	var failed *startError
	if errors.As(err, &failed) {
		code = failed.Code
		err = errors.New(c.command.explain(failed))
	}
	now := time.Now()
	c.state, c.startedAt, c.finishedAt = runtimeapi.ContainerState_CONTAINER_EXITED, now, now
	c.exitCode, c.reason, c.message = code, "StartError", err.Error()
	close(c.finished)
	return err
}

func (r *Runtime) run(c *container) error {
	s := c.sandbox
	s.mu.Lock()
	defer s.mu.Unlock() // keeps the namespaces open
	if s.stopping || s.ns == nil {
		return fmt.Errorf("container %s: its sandbox has stopped", c.name())
	}
	logPath := ""
	if c.config.GetLogPath() != "" && s.config.GetLogDirectory() != "" {
		logPath = filepath.Join(s.config.GetLogDirectory(), c.config.GetLogPath())
	}
	log, err := openLog(logPath)
	if err != nil {
		return err
	}
	streams, stdio, err := newContainerStreams(c.config, log)
	if err != nil {
		return errors.Join(err, log.close())
	}
	dir, cgroup, err := r.cgroups.container(s.cgroup, c.id, c.config.GetLinux().GetResources())
	if err != nil {
		closeFiles(stdio...)
		streams.close()
		return err
	}
	defer cgroup.Close()
	ns, newPID, err := r.containerNamespaces(c)
	if err != nil {
		closeFiles(stdio...)
		streams.close()
		return errors.Join(err, r.cgroups.remove(dir))
	}
	init, terminal, err := launch(ns, r.opts.InitPath, cgroup, newPID, c.start, stdio)
	closeFiles(stdio...)
	if ns.pid != nil && ns.pid != s.ns.pid {
		ns.pid.Close()
	}
	if err != nil {
		streams.close()
		return errors.Join(err, r.cgroups.kill(dir), r.cgroups.remove(dir))
	}
	streams.begin(terminal)
	c.mu.Lock()
	c.state, c.startedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, time.Now()
	c.cgroup, c.init, c.streams = dir, init, streams
	c.mu.Unlock()
	go r.watch(c)
	return nil
}

// containerNamespaces are the Pod's, but for processes: a container has its own
// PID namespace, the Pod's, another container's or the machine's.
func (r *Runtime) containerNamespaces(c *container) (ns *namespaces, newPID bool, err error) {
	shared := *c.sandbox.ns
	options := c.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	switch options.GetPid() {
	case runtimeapi.NamespaceMode_POD:
		return &shared, shared.pid == nil, nil
	case runtimeapi.NamespaceMode_NODE:
		shared.pid = nil
		return &shared, false, nil
	case runtimeapi.NamespaceMode_TARGET:
		target, err := r.container(options.GetTargetId())
		if err != nil {
			return nil, false, err
		}
		init, err := target.running()
		if err != nil {
			return nil, false, err
		}
		shared.pid, err = os.Open(fmt.Sprintf("/proc/%d/ns/pid", init.process.Pid))
		return &shared, false, err
	default:
		shared.pid = nil
		return &shared, true, nil
	}
}

// watch waits for the container's end and tidies up after it.
func (r *Runtime) watch(c *container) {
	<-c.init.done
	// What the command left behind in a shared PID namespace ends with it.
	if err := r.cgroups.kill(c.cgroup); err != nil {
		r.opts.Logger.Error("container left processes behind", "container", c.name(), "pod", c.sandbox.name(), "error", err)
	}
	c.streams.drain()
	oom := oomKilled(c.cgroup)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.finishedAt, c.exitCode = runtimeapi.ContainerState_CONTAINER_EXITED, time.Now(), c.init.code
	switch {
	case oom:
		c.reason = "OOMKilled"
	case c.exitCode == 0:
		c.reason = "Completed"
	default:
		c.reason = "Error"
	}
	if err := r.cgroups.remove(c.cgroup); err != nil {
		r.opts.Logger.Error("remove cgroup", "container", c.name(), "pod", c.sandbox.name(), "error", err)
	}
	close(c.finished)
}

// stopContainer asks the container to end and kills it after the grace period.
func (r *Runtime) stopContainer(ctx context.Context, c *container, grace time.Duration) error {
	init, err := c.running()
	if err != nil {
		return nil // has ended or never ran
	}
	if grace > 0 {
		init.signal(0, stopSignal(c.config.GetStopSignal()))
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-c.finished:
			return nil
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return r.killContainer(c)
}

// killContainer ends a container at once.
func (r *Runtime) killContainer(c *container) error {
	init, err := c.running()
	if err != nil {
		return nil
	}
	if err := r.cgroups.kill(c.cgroup); err != nil {
		_ = init.process.Kill()
		return err
	}
	<-c.finished
	return nil
}

func (r *Runtime) removeContainer(c *container) error {
	if err := r.killContainer(c); err != nil {
		return err
	}
	c.mu.Lock()
	starting := c.starting && c.state == runtimeapi.ContainerState_CONTAINER_CREATED
	c.removed = !starting
	c.mu.Unlock()
	if starting {
		return status.Errorf(codes.FailedPrecondition, "container %s is being started: try again", c.name())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, c.id)
	return nil
}

// running returns the init of a running container.
func (c *container) running() (*initProcess, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s is not running", c.name())
	}
	return c.init, nil
}

func (r *Runtime) container(id string) (*container, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if c, ok := r.containers[id]; ok {
		return c, nil
	}
	return nil, status.Errorf(codes.NotFound, "container %q not found", id)
}

func (r *Runtime) containersOf(sandboxID string) []*container {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []*container
	for _, c := range r.containers {
		if c.sandbox.id == sandboxID {
			out = append(out, c)
		}
	}
	return out
}

func (c *container) status() *runtimeapi.ContainerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &c.start.Process
	groups := make([]int64, len(p.Groups))
	for i, g := range p.Groups {
		groups[i] = int64(g)
	}
	s := &runtimeapi.ContainerStatus{
		Id: c.id, Metadata: c.config.GetMetadata(), State: c.state, CreatedAt: c.createdAt.UnixNano(),
		ExitCode: int32(c.exitCode), Reason: c.reason, Message: c.message,
		Image:    &runtimeapi.ImageSpec{Image: c.image.ref, UserSpecifiedImage: c.image.ref},
		ImageRef: c.image.id, ImageId: c.image.id,
		Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(), Mounts: c.config.GetMounts(),
		User:       &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: int64(p.UID), Gid: int64(p.GID), SupplementalGroups: groups}},
		StopSignal: c.config.GetStopSignal(),
	}
	if c.resources != nil {
		s.Resources = &runtimeapi.ContainerResources{Linux: c.resources}
	}
	if c.config.GetLogPath() != "" {
		s.LogPath = filepath.Join(c.sandbox.config.GetLogDirectory(), c.config.GetLogPath())
	}
	if !c.startedAt.IsZero() {
		s.StartedAt = c.startedAt.UnixNano()
	}
	if !c.finishedAt.IsZero() {
		s.FinishedAt = c.finishedAt.UnixNano()
	}
	return s
}

func (c *container) listed() *runtimeapi.Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &runtimeapi.Container{
		Id: c.id, PodSandboxId: c.sandbox.id, Metadata: c.config.GetMetadata(),
		Image:    &runtimeapi.ImageSpec{Image: c.image.ref, UserSpecifiedImage: c.image.ref},
		ImageRef: c.image.id, ImageId: c.image.id, State: c.state, CreatedAt: c.createdAt.UnixNano(),
		Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(),
	}
}

// stopSignal is SIGTERM unless the Pod names another one.
func stopSignal(s runtimeapi.Signal) unix.Signal {
	const rtMin, rtMax = 34, 64
	switch {
	case s == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT:
		return unix.SIGTERM
	case s == runtimeapi.Signal_SIGNAL_SIGCLD: // names that only some systems have
		return unix.SIGCHLD
	case s == runtimeapi.Signal_SIGNAL_SIGPOLL:
		return unix.SIGIO
	case s == runtimeapi.Signal_SIGNAL_SIGIOT:
		return unix.SIGABRT
	case s >= runtimeapi.Signal_SIGNAL_SIGRTMIN && s <= runtimeapi.Signal_SIGNAL_SIGRTMINPLUS15:
		return unix.Signal(rtMin + int(s-runtimeapi.Signal_SIGNAL_SIGRTMIN))
	case s >= runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14:
		return unix.Signal(rtMax - int(runtimeapi.Signal_SIGNAL_SIGRTMAX-s))
	}
	if number := unix.SignalNum(s.String()[len("SIGNAL_"):]); number != 0 {
		return number
	}
	return unix.SIGTERM
}

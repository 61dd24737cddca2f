package runtime

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairway.dev/fairway/standalone/internal/podnet"
	"fairway.dev/fairway/standalone/internal/runtime/initspec"
)

// sandbox is what the containers of a Pod share.
type sandbox struct {
	id        string
	config    *runtimeapi.PodSandboxConfig
	handler   string
	createdAt time.Time
	hostname  string
	cgroup    string
	addresses []netip.Addr

	stopped atomic.Bool // read without the lock: a container that is slow to start must not hold up lists

	mu       sync.Mutex
	stopping bool // no container starts any more
	ns       *namespaces
	// pause is the first process of the Pod's PID namespace, if it has one.
	pause *initProcess
}

func (s *sandbox) name() string {
	return s.config.GetMetadata().GetNamespace() + "/" + s.config.GetMetadata().GetName()
}

func (s *sandbox) options() *runtimeapi.NamespaceOption {
	return s.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (s *sandbox) hostNetwork() bool {
	return s.options().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

func (s *sandbox) state() runtimeapi.PodSandboxState {
	if s.stopped.Load() {
		return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	return runtimeapi.PodSandboxState_SANDBOX_READY
}

// runSandbox makes a Pod's namespaces, network and files.
func (r *Runtime) runSandbox(config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	s := &sandbox{id: newID(), config: config, handler: handler, createdAt: time.Now(), hostname: config.GetHostname()}
	if s.options().GetUsernsOptions().GetMode() == runtimeapi.NamespaceMode_POD && s.options().GetUsernsOptions() != nil {
		return "", fmt.Errorf("pod %s: user namespaces (spec.hostUsers: false) are not supported by standalone nodes: remove the field", s.name())
	}
	if s.hostname == "" {
		s.hostname = r.opts.NodeName // Pods on the node's network have the node's name
	}
	err := r.buildSandbox(s)
	if err == nil {
		r.mu.Lock()
		if r.closed {
			err = errors.New("the node is shutting down")
		} else {
			r.sandboxes[s.id] = s
		}
		r.mu.Unlock()
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("sandbox of Pod %s: %w", s.name(), err), r.teardown(s), os.RemoveAll(r.sandboxDir(s.id)))
	}
	return s.id, nil
}

func (r *Runtime) buildSandbox(s *sandbox) error {
	if err := r.sandboxFiles(s); err != nil {
		return err
	}
	var err error
	if s.cgroup, err = r.cgroups.pod(s.config.GetMetadata().GetUid()); err != nil {
		return err
	}
	hostIPC := s.options().GetIpc() == runtimeapi.NamespaceMode_NODE
	if s.ns, err = newNamespaces(s.hostname, s.hostNetwork(), hostIPC); err != nil {
		return err
	}
	if s.options().GetPid() == runtimeapi.NamespaceMode_POD {
		if err := r.startPause(s); err != nil {
			return err
		}
	}
	if !s.hostNetwork() {
		ports, err := hostPorts(s.config.GetPortMappings())
		if err != nil {
			return err
		}
		s.addresses, err = r.network.Attach(podnet.Pod{ID: s.id, Name: s.name(), Namespace: s.ns.network, Ports: ports})
		if err != nil {
			return err
		}
	}
	return s.ns.do(func() error { return setSysctls(s.config.GetLinux().GetSysctls()) })
}

// startPause starts the process that keeps and reaps a shared PID namespace.
func (r *Runtime) startPause(s *sandbox) error {
	_, cgroup, err := r.cgroups.container(s.cgroup, "pause-"+s.id, nil)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	s.pause, _, err = launch(s.ns, r.opts.InitPath, cgroup, true, &initspec.Start{Pause: true}, nil)
	if err != nil {
		return err
	}
	s.ns.pid, err = os.Open(fmt.Sprintf("/proc/%d/ns/pid", s.pause.process.Pid))
	return err
}

// setSysctls sets a Pod's sysctls from within its namespaces.
func setSysctls(values map[string]string) error {
	for name, value := range values {
		// As sysctl(8): dots and slashes may change places.
		path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
		if strings.Contains(name, "/") {
			path = filepath.Join("/proc/sys", strings.Map(swapDotSlash, name))
		}
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", name, value, err)
		}
	}
	return nil
}

func swapDotSlash(c rune) rune {
	switch c {
	case '.':
		return '/'
	case '/':
		return '.'
	}
	return c
}

func hostPorts(mappings []*runtimeapi.PortMapping) ([]podnet.Port, error) {
	var out []podnet.Port
	for _, m := range mappings {
		if m.GetHostPort() <= 0 {
			continue
		}
		p := podnet.Port{HostPort: uint16(m.GetHostPort()), PodPort: uint16(m.GetContainerPort())}
		switch m.GetProtocol() {
		case runtimeapi.Protocol_TCP:
			p.Protocol = unix.IPPROTO_TCP
		case runtimeapi.Protocol_UDP:
			p.Protocol = unix.IPPROTO_UDP
		case runtimeapi.Protocol_SCTP:
			p.Protocol = unix.IPPROTO_SCTP
		default:
			return nil, fmt.Errorf("hostPort %d: protocol %s is unknown", m.GetHostPort(), m.GetProtocol())
		}
		if m.GetHostIp() != "" {
			var err error
			if p.HostIP, err = netip.ParseAddr(m.GetHostIp()); err != nil {
				return nil, fmt.Errorf("hostPort %d: hostIP: %w", m.GetHostPort(), err)
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// sandboxFiles writes the files that the Pod's containers share.
func (r *Runtime) sandboxFiles(s *sandbox) error {
	dir, shm := r.sandboxDir(s.id), r.shmDir(s)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(shm, 0o1777); err != nil {
		return err
	}
	if err := os.Chmod(shm, os.ModeSticky|0o777); err != nil { // past the umask
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "hostname"), []byte(s.hostname+"\n"), 0o644); err != nil {
		return err
	}
	resolv, err := resolvConf(s.config.GetDnsConfig())
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "resolv.conf"), resolv, 0o644)
}

func (r *Runtime) shmDir(s *sandbox) string { return filepath.Join(r.shmRoot(), s.id) }

// resolvConf is the Pod's, or a copy of the machine's if the Pod has none.
func resolvConf(config *runtimeapi.DNSConfig) ([]byte, error) {
	if config == nil {
		data, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return data, err
	}
	var b strings.Builder
	if len(config.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(config.GetSearches(), " "))
	}
	for _, server := range config.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(config.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(config.GetOptions(), " "))
	}
	return []byte(b.String()), nil
}

// stopSandbox ends the Pod's containers and releases its network.
func (r *Runtime) stopSandbox(s *sandbox) error {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	var errs []error
	for _, c := range r.containersOf(s.id) {
		errs = append(errs, r.killContainer(c))
	}
	return errors.Join(append(errs, r.teardown(s))...)
}

// teardown undoes buildSandbox, as far as that came, but for the files.
func (r *Runtime) teardown(s *sandbox) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped.Load() {
		return nil
	}
	var errs []error
	if s.pause != nil {
		dir := filepath.Join(s.cgroup, "pause-"+s.id)
		errs = append(errs, r.cgroups.kill(dir))
		<-s.pause.done
		errs = append(errs, r.cgroups.remove(dir))
		s.pause = nil
	}
	errs = append(errs, r.network.Detach(s.id))
	if s.ns != nil {
		errs = append(errs, s.ns.close())
		s.ns = nil
	}
	err := errors.Join(errs...)
	s.stopped.Store(err == nil)
	return err
}

// removeSandbox removes everything of a Pod.
func (r *Runtime) removeSandbox(s *sandbox) error {
	errs := []error{r.stopSandbox(s)}
	for _, c := range r.containersOf(s.id) {
		errs = append(errs, r.removeContainer(c))
	}
	errs = append(errs, os.RemoveAll(r.sandboxDir(s.id)), os.RemoveAll(r.shmDir(s)))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.sandboxes, s.id)
	shared := false
	for _, other := range r.sandboxes {
		shared = shared || other.cgroup == s.cgroup
	}
	r.mu.Unlock()
	if shared {
		return nil
	}
	return r.cgroups.remove(s.cgroup)
}

func (r *Runtime) sandbox(id string) (*sandbox, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if s, ok := r.sandboxes[id]; ok {
		return s, nil
	}
	return nil, status.Errorf(codes.NotFound, "sandbox %q not found", id)
}

func (s *sandbox) status() *runtimeapi.PodSandboxStatus {
	network := &runtimeapi.PodSandboxNetworkStatus{}
	for i, a := range s.addresses {
		if i == 0 {
			network.Ip = a.String()
		} else {
			network.AdditionalIps = append(network.AdditionalIps, &runtimeapi.PodIP{Ip: a.String()})
		}
	}
	return &runtimeapi.PodSandboxStatus{
		Id: s.id, Metadata: s.config.GetMetadata(), State: s.state(), CreatedAt: s.createdAt.UnixNano(), Network: network,
		Linux:  &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: s.options()}},
		Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations(), RuntimeHandler: s.handler,
	}
}

func (s *sandbox) listed() *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{
		Id: s.id, Metadata: s.config.GetMetadata(), State: s.state(), CreatedAt: s.createdAt.UnixNano(),
		Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations(), RuntimeHandler: s.handler,
	}
}

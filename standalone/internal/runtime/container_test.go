package runtime

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func security(c *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerSecurityContext {
	return c.Linux.SecurityContext
}

func int64Value(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

// TestSurroundings checks what a command finds around it.
func TestSurroundings(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	tests := []struct {
		name   string
		script string
		change func(*runtimeapi.ContainerConfig)
		want   string
	}{
		{name: "pod's variables", script: `echo "$GREETING $HOSTNAME $HOME"`, want: "hello world pod-1 /root\n",
			change: func(c *runtimeapi.ContainerConfig) {
				c.Envs = []*runtimeapi.KeyValue{{Key: "GREETING", Value: []byte("hello world")}}
			}},
		{name: "own PATH wins", script: `echo $PATH`, want: "/bin\n",
			change: func(c *runtimeapi.ContainerConfig) {
				c.Envs = []*runtimeapi.KeyValue{{Key: "PATH", Value: []byte("/bin")}}
			}},
		{name: "nothing of the node's environment", script: `env | grep -c FAIRWAY_TEST`, want: "0\n"},
		{name: "hostname", script: `hostname; cat /etc/hostname; uname -n`, want: "pod-1\npod-1\npod-1\n"},
		{name: "resolv.conf", script: `cat /etc/resolv.conf`, want: "search default.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"},
		{name: "working directory is made", script: `pwd`, want: "/made/for/it\n",
			change: func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/made/for/it" }},
		{name: "own processes only", script: `cat /proc/1/comm; cat /proc/[0-9]*/comm | grep -vcE '^(fairway-init|sh|cat|grep)$'`, want: "fairway-init\n0\n"},
		{name: "stdin is empty", script: `cat; echo end`, want: "end\n"},
		{name: "devices", script: `for d in null zero full random urandom tty; do test -c /dev/$d || echo $d; done; echo x > /dev/null; head -c3 /dev/zero | wc -c; readlink /dev/ptmx /dev/fd`,
			want: "3\npts/ptmx\n/proc/self/fd\n"},
		{name: "no device of the machine", script: `ls /dev | tr '\n' ' '`, want: "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "},
		{name: "sys is read-only", script: `touch /sys/x 2>/dev/null || echo refused`, want: "refused\n"},
		{name: "run is its own", script: `touch /run/lock/x && ls /run`, want: "lock\n"},
		{name: "root can be changed", script: `echo new > /etc/fairway-test && cat /etc/fairway-test`, want: "new\n"},
		{name: "output without newline", script: `printf abc`, want: "abc"},
		{name: "output through /dev/stdout", script: `echo a > /dev/stdout; echo b > /dev/stdout`, want: "a\nb\n"},
		{name: "privileged sees devices", script: `test -e /dev/kmsg && touch /dev/fairway-test && echo yes`, want: "yes\n",
			change: func(c *runtimeapi.ContainerConfig) { security(c).Privileged = true }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var change []func(*runtimeapi.ContainerConfig)
			if tt.change != nil {
				change = append(change, tt.change)
			}
			if diff := cmp.Diff(tt.want, n.output(pod, tt.script, change...)); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, path := range []string{"/etc/fairway-test", "/made", "/dev/fairway-test", "/.fairway"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s of the container is on the machine", path)
		}
	}
}

// TestRights checks users, groups and capabilities.
func TestRights(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	const showCaps = `grep -E '^Cap(Eff|Bnd)' /proc/self/status | cut -f2 | sort -u | tr '\n' ' '`
	tests := []struct {
		name   string
		script string
		change func(*runtimeapi.LinuxContainerSecurityContext)
		want   string
	}{
		{name: "root", script: `id -u; id -g; id -G`, want: "0\n0\n0\n"},
		{name: "user and groups", script: `id -u; id -g; id -G; echo $HOME`, want: "1234\n2345\n2345 77 88\n/\n",
			change: func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = int64Value(1234), int64Value(2345), []int64{77, 88}
			}},
		{name: "the machine's user has its groups", script: `id -un; id -g; echo $HOME`, want: "games\n60\n/usr/games\n",
			change: func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = int64Value(5) }},
		{name: "a user writes to its output", script: `echo x > /dev/stdout`, want: "x\n",
			change: func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = int64Value(1234) }},
		{name: "a user binds port 80", script: `python3 -c 'import socket; socket.socket().bind(("", 80)); print("bound")'`, want: "bound\n",
			change: func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = int64Value(1234) }},
		{name: "default capabilities", script: showCaps, want: "00000000a80425fb "},
		{name: "a user has none", script: showCaps, want: "0000000000000000 00000000a80425fb ",
			change: func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = int64Value(1234) }},
		{name: "drop all, add one", script: showCaps, want: "0000000000000400 ",
			change: func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
			}},
		{name: "add", script: `ip link set lo down && echo down`, want: "down\n",
			change: func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"CAP_NET_ADMIN"}}
			}},
		{name: "not added", script: `ip link set lo up 2>/dev/null || echo refused`, want: "refused\n"},
		{name: "no new privileges", script: `grep NoNewPrivs /proc/self/status`, want: "NoNewPrivs:\t1\n",
			change: func(s *runtimeapi.LinuxContainerSecurityContext) { s.NoNewPrivs = true }},
		{name: "read-only root", script: `touch /etc/x /run/x /tmp/x 2>/dev/null; ls /etc/x /run/x /tmp/x 2>/dev/null; touch /dev/shm/x && echo shm`, want: "shm\n",
			change: func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }},
		{name: "masked paths", script: `cat /proc/keys | wc -c; ls /proc/tty | wc -l; touch /proc/sys/kernel/domainname 2>/dev/null || echo refused`, want: "0\n0\nrefused\n",
			change: func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/keys", "/proc/tty", "/proc/no-such"}, []string{"/proc/sys"}
			}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := n.output(pod, tt.script, func(c *runtimeapi.ContainerConfig) {
				if tt.change != nil {
					tt.change(security(c))
				}
			})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestMounts checks volumes as kubelet passes them.
func TestMounts(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	volume := filepath.Join(t.TempDir(), "volume")
	if err := os.MkdirAll(filepath.Join(volume, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"file": "from the machine\n", "sub/inner": "inner\n"} {
		if err := os.WriteFile(filepath.Join(volume, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", filepath.Join(volume, "sub"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(filepath.Join(volume, "sub"), unix.MNT_DETACH)
	tests := []struct {
		name   string
		mounts []*runtimeapi.Mount
		script string
		want   string
	}{
		{name: "writable", script: `cat /data/file; echo back > /data/new; echo inner > /data/sub/new; cat /data/sub/new`, want: "from the machine\ninner\n",
			mounts: []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: volume}}},
		{name: "read-only", script: `exec 2>&1; cat /data/file; echo x > /data/refused; echo x > /data/sub/still`, want: "from the machine\nsh: 1: cannot create /data/refused: Read-only file system\n",
			mounts: []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: volume, Readonly: true}}},
		{name: "recursively read-only", script: `echo x > /data/sub/refused`, want: "sh: 1: cannot create /data/sub/refused: Read-only file system\n",
			mounts: []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: volume, Readonly: true, RecursiveReadOnly: true}}},
		{name: "a file on a file", script: `cat /etc/hosts`, want: "from the machine\n",
			mounts: []*runtimeapi.Mount{{ContainerPath: "/etc/hosts", HostPath: filepath.Join(volume, "file")}}},
		{name: "below a link", script: `cat /run/secrets/token`, want: "from the machine\n",
			mounts: []*runtimeapi.Mount{{ContainerPath: "/var/run/secrets/token", HostPath: filepath.Join(volume, "file")}}},
		{name: "in /dev", script: `echo bye > /dev/termination-log; cat /dev/termination-log`, want: "bye\n",
			mounts: []*runtimeapi.Mount{{ContainerPath: "/dev/termination-log", HostPath: filepath.Join(volume, "termination")}}},
		{name: "one in another, in the wrong order", script: `cat /a/b/c/file /a/file`, want: "from the machine\nfrom the machine\n",
			mounts: []*runtimeapi.Mount{{ContainerPath: "/a/b/c", HostPath: volume}, {ContainerPath: "/a", HostPath: volume}}},
		{name: "options", script: `grep ' /data ' /proc/self/mounts | grep -o noexec`, want: "noexec\n",
			mounts: []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: volume, MountOptions: []string{"noexec"}}}},
		{name: "a directory that does not exist is made", script: `touch /data/x; ls /data`, want: "x\n",
			mounts: []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: filepath.Join(t.TempDir(), "later")}}},
		{name: "replaces one of the runtime's", script: `cat /etc/resolv.conf`, want: "from the machine\n",
			mounts: []*runtimeapi.Mount{{ContainerPath: "/etc/resolv.conf", HostPath: filepath.Join(volume, "file")}}},
	}
	if err := os.WriteFile(filepath.Join(volume, "termination"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := n.output(pod, tt.script, func(c *runtimeapi.ContainerConfig) { c.Mounts = tt.mounts })
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for name, want := range map[string]string{"new": "back\n", "sub/new": "inner\n", "termination": "bye\n"} {
		if got, _ := os.ReadFile(filepath.Join(volume, name)); string(got) != want {
			t.Errorf("%s on the machine: %q, want %q", name, got, want)
		}
	}
}

// TestMountPropagation mounts on one side and looks on the other.
func TestMountPropagation(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	volume := t.TempDir()
	if err := unix.Mount(volume, volume, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", volume, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(volume, unix.MNT_DETACH)
	for _, dir := range []string{"in", "out"} {
		if err := os.Mkdir(filepath.Join(volume, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name            string
		propagation     runtimeapi.MountPropagation
		inside, outside bool // who sees the other's mounts
	}{
		{"private", runtimeapi.MountPropagation_PROPAGATION_PRIVATE, false, false},
		{"host to container", runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
		{"bidirectional", runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id := n.run(pod, "mount -t tmpfs x /data/out && touch /data/out/x && sleep 100", func(c *runtimeapi.ContainerConfig) {
				security(c).Privileged = true
				c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: volume, Propagation: tt.propagation}}
			})
			defer n.service.RemoveContainer(context.Background(), id)
			in := filepath.Join(volume, "in")
			if err := unix.Mount("tmpfs", in, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(in, unix.MNT_DETACH)
			if err := os.WriteFile(filepath.Join(in, "x"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			n.eventually(func() error { _, err := n.exec(id, "test", "-e", "/data/out/x"); return err })
			if _, err := n.exec(id, "test", "-e", "/data/in/x"); (err == nil) != tt.inside {
				t.Errorf("the container sees the machine's mount: %v, want %v", err == nil, tt.inside)
			}
			out := filepath.Join(volume, "out")
			if _, err := os.Stat(filepath.Join(out, "x")); (err == nil) != tt.outside {
				t.Errorf("the machine sees the container's mount: %v, want %v", err == nil, tt.outside)
			}
			_ = unix.Unmount(out, unix.MNT_DETACH)
		})
	}
}

// TestNodeIsHidden keeps the cluster's credentials from containers.
func TestNodeIsHidden(t *testing.T) {
	data := t.TempDir()
	secret := filepath.Join(data, "kubeconfig")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, func(o *Options) { o.Hide = []string{secret, "/no/such/path"} })
	pod := n.pod()
	if got := n.output(pod, "cat "+secret+"; ls -A "+n.opts.Dir); got != "" {
		t.Errorf("containers see %q", got)
	}
}

// TestExitCodes checks the end of containers.
func TestExitCodes(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	tests := []struct {
		name, script string
		code         int32
		reason       string
	}{
		{"success", "exit 0", 0, "Completed"},
		{"failure", "exit 42", 42, "Error"},
		{"signal", "kill -KILL $$", 137, "Error"},
		{"orphans do not count", "(sleep 0.05; exit 3) & exit 7", 7, "Error"},
		{"zombies are reaped", "for i in 1 2 3 4 5; do (sh -c 'sleep 0.01' &); done; sleep 0.2; test $(grep -ls 'Z (zombie)' /proc/[0-9]*/status | wc -l) = 0", 0, "Completed"},
		{"process 1 passes signals on", "trap 'exit 9' TERM; kill -TERM 1; sleep 5", 9, "Error"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id := n.run(pod, tt.script)
			defer n.service.RemoveContainer(context.Background(), id)
			s := n.wait(id)
			if s.ExitCode != tt.code || s.Reason != tt.reason || s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
				t.Errorf("exit code %d reason %s state %s, want %d %s", s.ExitCode, s.Reason, s.State, tt.code, tt.reason)
			}
			if s.FinishedAt < s.StartedAt || s.StartedAt < s.CreatedAt || s.CreatedAt == 0 {
				t.Errorf("times are out of order: created %d started %d finished %d", s.CreatedAt, s.StartedAt, s.FinishedAt)
			}
		})
	}
}

// TestStop checks grace periods and stop signals.
func TestStop(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	tests := []struct {
		name, script string
		signal       runtimeapi.Signal
		grace        int64
		code         int32
	}{
		{"graceful", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.02; done", 0, 20, 5},
		{"deaf", "trap '' TERM; echo ready; while :; do sleep 0.02; done", 0, 1, 137},
		{"no grace", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done", 0, 0, 137},
		{"own signal", "trap 'exit 6' USR1; echo ready; while :; do sleep 0.02; done", runtimeapi.Signal_SIGNAL_SIGUSR1, 20, 6},
		{"real-time signal", "trap 'exit 8' RTMIN+3; echo ready; while :; do sleep 0.02; done", runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, 20, 8},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id := n.run(pod, "", func(c *runtimeapi.ContainerConfig) {
				c.Command = []string{"bash", "-c", tt.script}
				c.StopSignal, c.LogPath = tt.signal, tt.name+".log"
			})
			n.eventually(func() error {
				if !strings.Contains(n.log(id), "ready") {
					return os.ErrNotExist
				}
				return nil
			})
			began := time.Now()
			if err := n.service.StopContainer(context.Background(), id, tt.grace); err != nil {
				t.Fatal(err)
			}
			s := n.status(id)
			if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != tt.code {
				t.Errorf("state %s exit code %d, want %d", s.State, s.ExitCode, tt.code)
			}
			if time.Since(began) > 15*time.Second {
				t.Errorf("took %s", time.Since(began))
			}
			if err := n.service.StopContainer(context.Background(), id, 1); err != nil {
				t.Errorf("second stop: %v", err)
			}
		})
	}
}

// TestStartFailures checks that people are told what to do.
func TestStartFailures(t *testing.T) {
	n := newNode(t, func(o *Options) {
		o.Images = []ImageMapping{{Ref: "nginx", Command: []string{"no-such-server", "-g"}}}
	})
	pod := n.pod()
	tests := []struct {
		name     string
		change   func(*runtimeapi.ContainerConfig)
		atCreate bool
		code     int32
		want     []string
	}{
		{name: "neither mapped nor a command", atCreate: true,
			change: func(c *runtimeapi.ContainerConfig) { c.Command = nil },
			want:   []string{`image "busybox" is not mapped`, "fairway up --image busybox=COMMAND", "`command:` in the Pod spec"}},
		{name: "mapped to nothing", code: 127,
			change: func(c *runtimeapi.ContainerConfig) {
				c.Command, c.Image.UserSpecifiedImage = nil, "docker.io/library/nginx:1.27"
			},
			want: []string{`exec: "no-such-server": not found on this machine`, "map the image with --image nginx=COMMAND"}},
		{name: "command does not exist", code: 127,
			change: func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such"} },
			want:   []string{`exec: "/no/such": not found on this machine`, "--image busybox=COMMAND"}},
		{name: "not executable", code: 126,
			change: func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/etc/passwd"} },
			want:   []string{`exec: "/etc/passwd": permission denied`}},
		{name: "a directory", code: 126,
			change: func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/etc"} },
			want:   []string{`exec: "/etc": is a directory`}},
		{name: "a file as directory", code: 128,
			change: func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/etc/passwd" },
			want:   []string{"working directory", "/etc/passwd"}},
		{name: "seccomp file", atCreate: true,
			change: func(c *runtimeapi.ContainerConfig) {
				security(c).Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "p.json"}
			},
			want: []string{"seccompProfile", "p.json", "RuntimeDefault"}},
		{name: "unknown capability", atCreate: true,
			change: func(c *runtimeapi.ContainerConfig) {
				security(c).Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"FLY"}}
			},
			want: []string{`capability "FLY" is unknown`}},
		{name: "image volume", atCreate: true,
			change: func(c *runtimeapi.ContainerConfig) {
				c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: "data"}}}
			},
			want: []string{"mount /v", "pull no images"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, err := n.service.CreateContainer(context.Background(), pod, containerConfig("", tt.change), nil)
			if !tt.atCreate {
				if err != nil {
					t.Fatal(err)
				}
				err = n.service.StartContainer(context.Background(), id)
				s := n.status(id)
				if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != tt.code || s.Reason != "StartError" || err == nil || s.Message != err.Error() {
					t.Errorf("status %s %d %s %q", s.State, s.ExitCode, s.Reason, s.Message)
				}
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

// TestBuiltinImages checks those that need no mapping.
func TestBuiltinImages(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	got := n.output(pod, "", func(c *runtimeapi.ContainerConfig) {
		c.Image.UserSpecifiedImage, c.Command, c.Args = "fairway.dev/echo:latest", nil, []string{"--port", "80"}
	})
	if got != "fairway echo --port 80\n" {
		t.Errorf("echo ran as %q", got)
	}
	id := n.run(pod, "", func(c *runtimeapi.ContainerConfig) {
		c.Image.UserSpecifiedImage, c.Command = "registry.k8s.io/pause:3.10", nil
	})
	if s := n.status(id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("pause is %s", s.State)
	}
	began := time.Now()
	if err := n.service.StopContainer(context.Background(), id, 20); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("pause took %s to stop: SIGTERM does not reach it", took)
	}
}

// TestImageFiles shows files that an image brings: new ones, one in place of
// the machine's, one through the machine's symbolic link, a directory of its own.
func TestImageFiles(t *testing.T) {
	dir := t.TempDir()
	for path, text := range map[string]string{
		"app": "#!/bin/sh\ncat /etc/hosts.allow /etc/app.conf /srv/app/page /var/run/app.conf\n", "etc/app.conf": "new\n", "etc/hosts.allow": "other\n",
		"srv/app/page": "page\n", "var/run/app.conf": "linked\n", "data/kept": "not seen\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n := newNode(t, func(o *Options) { o.ImageFiles = []ImageFiles{{Ref: "*/app", Dir: dir}} })
	pod := n.pod()
	volume := t.TempDir()
	image := func(c *runtimeapi.ContainerConfig) {
		c.Image.UserSpecifiedImage = "example.com/app:1"
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: volume}}
	}
	const script = "/app; ls -A /data; test -e /etc/passwd && echo machine; (echo x > /srv/app/page) 2>/dev/null || echo read-only"
	const want = "other\nnew\npage\nlinked\nmachine\nread-only\n"
	if diff := cmp.Diff(want, n.output(pod, script, image)); diff != "" {
		t.Error(diff)
	}
	if got := n.output(pod, "ls /app 2>/dev/null || echo none"); got != "none\n" {
		t.Errorf("another image sees the files: %q", got)
	}
	id := n.create(pod, containerConfig(script, image))
	c, err := n.runtime.container(id)
	if err != nil {
		t.Fatal(err)
	}
	c.start.Root.NoOverlay = true
	if err := n.service.StartContainer(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	n.wait(id)
	if diff := cmp.Diff(want, n.text(id)); diff != "" {
		t.Errorf("without overlay: %s", diff)
	}
}

// TestWithoutOverlay builds the root the other way.
func TestWithoutOverlay(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "x"), []byte("text\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	id := n.create(pod, containerConfig(`cat /etc/deep/x /x/y/x; test -d /etc/apt && echo apt; touch /usr/x 2>/dev/null || echo read-only; touch /tmp/x && echo tmp; cat /etc/hostname; hostname -s`,
		func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/etc/deep", HostPath: volume}, {ContainerPath: "/x/y", HostPath: volume}}
		}))
	c, err := n.runtime.container(id)
	if err != nil {
		t.Fatal(err)
	}
	c.start.Root.NoOverlay = true
	if err := n.service.StartContainer(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	n.wait(id)
	if diff := cmp.Diff("text\ntext\napt\nread-only\ntmp\npod-1\npod-1\n", n.text(id)); diff != "" {
		t.Error(diff)
	}
}

// TestLongEnvironment passes more than a socket's buffer, as the variables of
// many Services are.
func TestLongEnvironment(t *testing.T) {
	n := newNode(t)
	pod := n.pod()
	got := n.output(pod, "env | grep -c '^LONG'", func(c *runtimeapi.ContainerConfig) {
		for range 200 {
			c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: "LONG" + newID()[:8], Value: []byte(strings.Repeat("x", 5000))})
		}
	})
	if got != "200\n" {
		t.Errorf("got %q", got)
	}
}

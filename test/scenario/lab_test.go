package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The network between node 1 and the outside.
const (
	nodeAddr    = "198.51.100.2"
	outsideAddr = "198.51.100.1"
	lanPrefix   = "/24"
	lbPool      = "198.51.100.128/26"
	databaseIP  = "192.0.2.10" // the address that manifest 06 names
)

// lab is a running Fairway, in network namespaces of its own.
type lab struct {
	root    string // of the repository
	dir     string // scratch
	data    string // data directory of the run
	node    string // namespace of node 1
	outside string // namespace of a client on its network
	id      string // of the run, as in the names of its namespaces; set once it is up
	before  string // the footprint before it was up
}

// env is the lab that the helpers work in: that with one node, which the tests share, unless a test has one of its own
// (see useLab).
var env *lab

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "the scenarios make network namespaces: run them as root (make test)")
		os.Exit(1)
	}
	code, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return 1, err
	}
	if env, err = makeLab(root, "one"); err != nil {
		return 1, err
	}
	defer env.remove()
	said, err := env.up("--image", "example/db="+env.fairway()+" echo --tcp :5432 --banner --http :8080")
	fmt.Println(said)
	if err != nil {
		return 1, err
	}
	code = m.Run()
	if code != 0 {
		fmt.Println(env.logs())
	}
	if err := env.down(); err != nil {
		return 1, err
	}
	return code, nil
}

// makeLab makes the namespaces and the scratch directory of a lab. Nothing runs in it yet.
func makeLab(root, name string) (*lab, error) {
	dir, err := os.MkdirTemp("", "fairway-scenario-")
	if err != nil {
		return nil, err
	}
	l := &lab{
		root: root, dir: dir, data: filepath.Join(dir, "data"), id: "none",
		node: fmt.Sprintf("fws-%s-node-%d", name, os.Getpid()), outside: fmt.Sprintf("fws-%s-out-%d", name, os.Getpid()),
	}
	if err = l.makeNetwork(); err == nil {
		l.before, err = l.footprint()
	}
	if err != nil {
		l.remove()
		return nil, err
	}
	return l, nil
}

// remove takes the lab away. Fairway must be down.
func (l *lab) remove() {
	l.removeNetwork()
	_ = os.RemoveAll(l.dir)
}

// up starts Fairway and returns what it says.
func (l *lab) up(flags ...string) (string, error) {
	args := append([]string{l.fairway(), "up", "--data-dir", l.data, "--detach", "--lb-pool", lbPool}, flags...)
	out := l.run(l.node, args...)
	if out.err != nil {
		return out.all(), fmt.Errorf("fairway up: %w\n%s", out.err, l.logs())
	}
	var err error
	l.id, err = l.runID()
	return out.all(), err
}

// down stops Fairway and looks for what it left behind.
func (l *lab) down() error {
	if out := l.run(l.node, l.fairway(), "down", "--data-dir", l.data); out.err != nil {
		return fmt.Errorf("fairway down: %w\n%s", out.err, out.all())
	}
	after, err := l.footprint()
	if err != nil {
		return err
	}
	if l.before != after {
		return fmt.Errorf("fairway down left something behind.\n--- before\n%s\n--- after\n%s", l.before, after)
	}
	return nil
}

// useLab lets the helpers work in a lab of the test's own until it ends.
func useLab(t *testing.T, name string) {
	t.Helper()
	own, err := makeLab(env.root, name)
	if err != nil {
		t.Fatal(err)
	}
	shared := env
	env = own
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(own.logs())
		}
		if err := own.down(); err != nil {
			t.Error(err)
		}
		own.remove()
		env = shared
	})
}

func (l *lab) fairway() string { return filepath.Join(l.root, "bin", "fairway") }

func (l *lab) makeNetwork() error {
	script := fmt.Sprintf(`set -e
ip netns add %[1]s; ip netns add %[2]s
ip -n %[1]s link set lo up; ip -n %[2]s link set lo up
ip -n %[1]s link add lan0 type veth peer name lan0 netns %[2]s
ip -n %[1]s addr add %[3]s%[5]s dev lan0; ip -n %[2]s addr add %[4]s%[5]s dev lan0
ip -n %[1]s link set lan0 up; ip -n %[2]s link set lan0 up
ip -n %[1]s route add default via %[4]s
ip -n %[2]s addr add %[6]s/32 dev lo
`, l.node, l.outside, nodeAddr, outsideAddr, lanPrefix, databaseIP)
	if out, err := exec.Command("bash", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("make the network: %w\n%s", err, out)
	}
	return nil
}

func (l *lab) removeNetwork() {
	for _, ns := range []string{l.node, l.outside} {
		_ = exec.Command("ip", "netns", "del", ns).Run()
	}
}

// footprint is what `down` has to leave as it was: links, addresses, routes,
// rules, packet rules, mounts, namespaces.
func (l *lab) footprint() (string, error) {
	out := l.run(l.node, "bash", "-c", `
ip -o link show | sed 's/^[0-9]*: //; s/ state [A-Z]*//; s/<[^>]*>//'
ip -o addr show scope global | sed 's/^[0-9]*: //; s/ valid_lft.*//'
ip route show table all | grep -v 'proto kernel' | sort
ip -6 route show table all | grep -v 'proto kernel' | sort
ip rule; ip -6 rule
nft list tables
grep -F "$0" /proc/self/mountinfo || true
ls /run/netns | grep -F "fairway-$1-" || true
ls -d /sys/fs/bpf/"fairway-$1" 2>/dev/null || true`, l.data, l.id)
	return out.stdout, out.err
}

// runID reads the identity of the run, which its namespaces carry in their names.
func (l *lab) runID() (string, error) {
	var s struct{ ID string }
	b, err := os.ReadFile(filepath.Join(l.data, "run", "state.json"))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil && s.ID == "" {
		err = errors.New("state.json has no id")
	}
	return s.ID, err
}

// logs returns the ends of all logs of the run.
func (l *lab) logs() string {
	out, _ := exec.Command("bash", "-c", fmt.Sprintf("tail -n 25 %s/logs/*.log | cut -c 1-400", l.data)).CombinedOutput()
	return string(out)
}

type result struct {
	stdout, stderr string
	err            error
}

func (r result) all() string { return r.stdout + r.stderr }

// run runs a program in a namespace, for five minutes at most.
func (l *lab) run(ns string, args ...string) result { return l.runInput(ns, "", args...) }

func (l *lab) runInput(ns, input string, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := l.command(ctx, ns, args...)
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	return result{stdout.String(), stderr.String(), err}
}

func (l *lab) command(ctx context.Context, ns string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + ns, "--"}, args...)...)
	cmd.Dir = l.dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "KUBECONFIG=") || strings.HasPrefix(strings.ToLower(e), "http_proxy=") || strings.HasPrefix(strings.ToLower(e), "https_proxy=")
	}), "FAIRWAY_DATA_DIR="+l.data, "HOME="+l.dir)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// must runs a program and stops the test when it fails.
func must(t *testing.T, ns string, args ...string) string {
	t.Helper()
	r := env.run(ns, args...)
	if r.err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), r.err, r.all())
	}
	return r.stdout
}

// kubectl runs `fairway kubectl` and returns what it prints.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return must(t, env.node, append([]string{env.fairway(), "kubectl"}, args...)...)
}

// apply runs `fairway apply` on a file of examples/ and returns its stderr.
func apply(t *testing.T, namespace, file string) string {
	t.Helper()
	r := env.run(env.node, env.fairway(), "apply", "-n", namespace, "-f", filepath.Join(env.root, "examples", file))
	if r.err != nil {
		t.Fatalf("apply %s: %v\n%s", file, r.err, r.all())
	}
	return r.stderr
}

// applyFile applies a file of the test's own.
func applyFile(t *testing.T, namespace, path string) {
	t.Helper()
	if r := env.run(env.node, env.fairway(), "apply", "-n", namespace, "-f", path); r.err != nil {
		t.Fatalf("apply %s: %v\n%s", path, r.err, r.stderr)
	}
}

// applyText applies a manifest that the test holds.
func applyText(t *testing.T, namespace, manifest string) {
	t.Helper()
	r := env.runInput(env.node, manifest, env.fairway(), "apply", "-n", namespace, "-f", "-")
	if r.err != nil {
		t.Fatalf("apply: %v\n%s\n%s", r.err, r.all(), manifest)
	}
}

// namespace makes a namespace that goes with the test.
func namespace(t *testing.T, name string) string {
	t.Helper()
	kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		if r := env.run(env.node, env.fairway(), "kubectl", "delete", "namespace", name, "--wait=false"); r.err != nil {
			t.Errorf("delete namespace %s: %s", name, r.all())
		}
	})
	return name
}

// deleteAfter deletes the objects of files in examples/ when the test ends.
func deleteAfter(t *testing.T, ns string, what ...string) {
	t.Helper()
	t.Cleanup(func() {
		args := append([]string{env.fairway(), "kubectl", "-n", ns, "delete", "--ignore-not-found", "--wait=false"}, what...)
		if r := env.run(env.node, args...); r.err != nil {
			t.Errorf("delete %v: %s", what, r.all())
		}
	})
}

func waitReady(t *testing.T, ns string, what ...string) {
	t.Helper()
	for _, w := range what {
		kubectl(t, "-n", ns, "rollout", "status", w, "--timeout=60s")
	}
}

// inPod runs a program in a Pod of a workload.
func inPod(ns, workload string, args ...string) result {
	return env.run(env.node, append([]string{env.fairway(), "kubectl", "-n", ns, "exec", workload, "--"}, args...)...)
}

func field(t *testing.T, ns, what, path string) string {
	t.Helper()
	args := append([]string{"-n", ns, "get"}, strings.Fields(what)...)
	return strings.TrimSpace(kubectl(t, append(args, "-o", "jsonpath="+path)...))
}

// eventually tries until check returns nil.
func eventually(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", within, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// answer is what the echo workload tells.
type answer struct {
	Pod     string              `json:"pod"`
	Host    string              `json:"host"`
	Path    string              `json:"path"`
	Headers map[string][]string `json:"headers"`
	Remote  string              `json:"remoteAddress"`
}

// curl asks once and returns status and answer; extra are curl's own arguments.
func curl(ns string, extra ...string) (int, answer, error) {
	r := env.run(ns, append([]string{"curl", "-sS", "-g", "--noproxy", "*", "--max-time", "5", "-w", "\n%{http_code}"}, extra...)...)
	if r.err != nil {
		return 0, answer{}, fmt.Errorf("%w: %s", r.err, strings.TrimSpace(r.stderr))
	}
	body, code, _ := cutLast(r.stdout, "\n")
	var status int
	if _, err := fmt.Sscan(code, &status); err != nil {
		return 0, answer{}, fmt.Errorf("no status in %q", r.stdout)
	}
	var a answer
	_ = json.Unmarshal([]byte(body), &a) // errors are answered in plain text
	return status, a, nil
}

func cutLast(s, sep string) (string, string, bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// wantStatus asks until the status is right.
func wantStatus(t *testing.T, ns string, want int, extra ...string) answer {
	t.Helper()
	var got answer
	eventually(t, 15*time.Second, func() error {
		status, a, err := curl(ns, extra...)
		if err != nil {
			return fmt.Errorf("curl %s: %w", strings.Join(extra, " "), err)
		}
		if status != want {
			return fmt.Errorf("curl %s: status %d, want %d", strings.Join(extra, " "), status, want)
		}
		got = a
		return nil
	})
	return got
}

// refused asks until the connection is refused.
func refused(t *testing.T, ns string, url string) {
	t.Helper()
	eventually(t, 15*time.Second, func() error {
		_, _, err := curl(ns, url)
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == 7 { // CURLE_COULDNT_CONNECT
			return nil
		}
		return fmt.Errorf("%s: got %v, want a refused connection", url, err)
	})
}

// podsAnswering asks n times and returns the Pods that answered, sorted.
func podsAnswering(t *testing.T, ns string, n int, extra ...string) []string {
	t.Helper()
	var pods []string
	for range n {
		status, a, err := curl(ns, extra...)
		if err != nil || status != 200 {
			t.Fatalf("curl %s: status %d, %v", strings.Join(extra, " "), status, err)
		}
		if !slices.Contains(pods, a.Pod) {
			pods = append(pods, a.Pod)
		}
	}
	slices.Sort(pods)
	return pods
}

func podsOf(t *testing.T, ns, selector string) []string {
	t.Helper()
	pods := strings.Fields(field(t, ns, "pods -l "+selector, "{.items[*].metadata.name}"))
	slices.Sort(pods)
	return pods
}

// wantEvent waits for an Event on an object whose message holds all words.
func wantEvent(t *testing.T, ns, object string, words ...string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		r := env.run(env.node, env.fairway(), "kubectl", "-n", ns, "get", "events", "-o",
			`jsonpath={range .items[*]}{.involvedObject.kind}/{.involvedObject.name}: {.reason}: {.message}{"\n"}{end}`)
		for line := range strings.Lines(r.stdout) {
			if !strings.HasPrefix(strings.ToLower(line), strings.ToLower(object)+":") {
				continue
			}
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return nil
			}
		}
		return fmt.Errorf("no Event on %s with %q in\n%s%s", object, words, r.stdout, r.stderr)
	})
}

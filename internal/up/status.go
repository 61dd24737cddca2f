package up

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"fairway.dev/fairway/internal/up/machine"
	"fairway.dev/fairway/internal/up/supervise"
)

// Report is how a cluster is.
type Report struct {
	DataDir string `json:"dataDir"`
	// Phase is empty when nothing runs.
	Phase     Phase              `json:"phase,omitempty"`
	Started   *time.Time         `json:"started,omitempty"`
	Processes []supervise.Status `json:"processes"`
	Addresses Addresses          `json:"addresses"`
	// Kubeconfig is the path of the administrator's kubeconfig.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// Problems are sentences about what is not well. Empty when all is.
	Problems []string `json:"problems"`
}

// Status looks at the cluster in dataDir.
func Status(ctx context.Context, dataDir string) (Report, error) {
	d := dir(dataDir)
	r := Report{DataDir: dataDir, Processes: []supervise.Status{}, Problems: []string{}}
	state, err := d.readState()
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			return r, fmt.Errorf("%w; try: sudo fairway status", err)
		}
		return r, err
	}
	if state == nil {
		r.problem("nothing runs with the data directory %s: start it with fairway up%s", dataDir, DataDirFlag(dataDir))
		return r, nil
	}
	r.Phase, r.Started, r.Addresses, r.Kubeconfig = state.Phase, &state.Started, state.Addresses, d.kubeconfig()
	supervisor := supervise.Status{
		Role: roleSupervisor, Identity: state.Supervisor, State: supervise.Running, Since: state.Started, Log: d.log(roleSupervisor, ""),
	}
	alive := state.Supervisor.Alive()
	if !alive {
		supervisor.State = supervise.Exited
		r.problem("fairway up (pid %d) was killed: clear what it left with fairway down%s, or start again with fairway up%s",
			state.Supervisor.PID, DataDirFlag(dataDir), DataDirFlag(dataDir))
	}
	r.Processes = append(r.Processes, supervisor)
	r.noteHalt(&r.Processes[0])
	slices.SortStableFunc(state.Processes, func(a, b supervise.Status) int {
		return cmp.Or(cmp.Compare(slices.Index(roleOrder, a.Role), slices.Index(roleOrder, b.Role)), cmp.Compare(nodeIndex(state, a), nodeIndex(state, b)))
	})
	for _, p := range state.Processes {
		r.addProcess(p, alive)
	}
	if !alive {
		return r, nil // that says it all
	}
	if state.Phase != Ready {
		r.problem("the cluster is %s", state.Phase)
	}
	if free, err := d.free(); err != nil {
		r.problem("%v", err)
	} else if free < spaceForMore {
		r.problem("only %d MiB are free on the file system of the data directory %s: make room before it is full, which ends the control plane", free>>20, d)
	}
	if err := d.checkInodes(); err != nil {
		r.problem("%v", err)
	}
	if err := d.writable(); err != nil {
		r.problem("%v; until then there is no control plane, Services and the gateway stay as they are, and what is said of processes may be old", err)
	} else {
		r.checkRoles(d, state)
	}
	if !r.stopped(roleControl) { // else it does not answer, as was said
		r.checkAPI(ctx, d, state)
	}
	return r, nil
}

// roleOrder is how processes are listed.
var roleOrder = []string{roleControl, roleKubelet, roleNode, roleGateway, roleController}

func nodeIndex(s *State, p supervise.Status) int {
	return slices.IndexFunc(s.Nodes, func(n Node) bool { return n.Name == p.Node })
}

// DataDirFlag is what names a data directory in commands that people copy, with a blank before it; empty for the default one.
func DataDirFlag(dataDir string) string {
	if dataDir == DefaultDataDir {
		return ""
	}
	return " --data-dir " + shellWord(dataDir)
}

// shellWord is a text as a shell takes it for one word, for commands that people copy.
func shellWord(text string) string {
	safe := func(r rune) bool {
		return r == '/' || r == '.' || r == '-' || r == '_' || r == '+' || r == ':' || r == ',' || r == '@' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
	}
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return !safe(r) }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

func (r *Report) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// addProcess takes over a recorded status, and corrects what can have changed since it was recorded. supervised says
// whether there is still somebody who starts it again.
func (r *Report) addProcess(p supervise.Status, supervised bool) {
	if !p.Alive() && (p.State == supervise.Running || !supervised) {
		p.PID, p.State = 0, supervise.Exited
		if supervised {
			p.State = supervise.Restarting // the supervisor is about to notice
		}
	}
	r.noteHalt(&p)
	r.Processes = append(r.Processes, p)
	if p.State == supervise.Running || p.State == supervise.Stopped || !supervised {
		return
	}
	text := fmt.Sprintf("%s of %s is %s", p.Role, p.Node, p.State)
	if p.LastExit != "" {
		text += " after " + p.LastExit
	}
	if lines := supervise.Tail(p.Log, 5); len(lines) > 0 {
		text += "; the end of " + p.Log + ":\n    " + strings.Join(lines, "\n    ")
	}
	r.problem("%s", text)
}

// noteHalt changes a status to Stopped, and reports it, where the process is alive and stopped.
func (r *Report) noteHalt(p *supervise.Status) {
	name := p.Role
	if p.Node != "" {
		name += " of " + p.Node
	}
	switch p.Halted() {
	case supervise.BySignal:
		r.problem("%s (pid %d) is stopped (signal); continue it with kill -CONT %d", name, p.PID, p.PID)
	case supervise.ByDebugger:
		r.problem("%s (pid %d) is stopped (debugger); let the debugger continue it or detach", name, p.PID)
	default:
		return
	}
	p.State = supervise.Stopped
}

// stopped says whether a process of that role is alive and stopped.
func (r *Report) stopped(role string) bool {
	return slices.ContainsFunc(r.Processes, func(p supervise.Status) bool { return p.Role == role && p.State == supervise.Stopped })
}

// silenceToReport is how old a role's ready file may be; roles touch it every second.
const silenceToReport = 5 * time.Second

// checkRoles reports roles that run without serving.
func (r *Report) checkRoles(d dir, s *State) {
	for _, p := range s.Processes {
		if p.State != supervise.Running || p.Halted() != "" || p.Role == roleControl || p.Role == roleKubelet || s.Phase != Ready {
			continue
		}
		info, err := os.Stat(d.ready(p.Role, p.Node))
		if err != nil {
			r.problem("%s of %s runs but does not serve yet; its log is %s", p.Role, p.Node, p.Log)
			continue
		}
		if silence := time.Since(info.ModTime()); silence > silenceToReport {
			r.problem("%s of %s (pid %d) has given no sign of life for %s, and will soon be started again", p.Role, p.Node, p.PID, age(silence))
			continue
		}
		text, _ := os.ReadFile(d.ready(p.Role, p.Node)) // what is not there any more was replaced this moment
		_, troubles, _ := strings.Cut(string(text), "\n")
		for line := range strings.Lines(troubles) {
			r.problem("%s of %s: %s", p.Role, p.Node, strings.TrimSpace(line))
		}
	}
}

// checkAPI reports an API that does not answer, nodes that are not ready, and DNS that leads nowhere.
func (r *Report) checkAPI(ctx context.Context, d dir, s *State) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	node1, err := machine.Find(s.NamespaceInode)
	if err != nil || node1 == nil {
		r.problem("the cluster's network namespace is not to be found (%v); try as root", err)
		return
	}
	defer node1.Close()
	api, err := openKubeAPI(d.kubeconfig(), node1)
	if err == nil {
		defer api.close()
		err = api.ready(ctx)
	}
	if err != nil {
		r.problem("the Kubernetes API does not answer: %v", err)
		return
	}
	var present []string
	for _, node := range s.Nodes {
		condition, err := api.node(ctx, node.Name)
		if err == nil {
			present = append(present, node.Name)
		}
		switch {
		case errors.Is(err, errNotFound):
			r.problem("the Node object %s is gone; it comes back when its kubelet is started again%s", node.Name, r.killHint(roleKubelet, node.Name))
		case err != nil:
			r.problem("node %s: %v", node.Name, err)
		case !condition.Ready:
			r.problem("node %s is not ready: %s: %s", node.Name, condition.Reason, condition.Message)
		}
	}
	if s.Phase == Ready && len(s.Addresses.DNS) > 0 {
		r.checkDNS(ctx, api, present)
	}
}

// dnsPatience is how long the DNS Service or an endpoint may be missing: the controller and the nodes put them back
// within about a second.
const dnsPatience = 3 * time.Second

// checkDNS reports a DNS Service that does not exist or does not lead to the DNS servers of these nodes.
func (r *Report) checkDNS(ctx context.Context, api *kubeAPI, nodes []string) {
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		problem := dnsProblem(ctx, api, nodes)
		if problem == "" {
			return
		}
		if time.Since(began) > dnsPatience || ctx.Err() != nil {
			r.problem("%s", problem)
			return
		}
	}
}

// dnsProblem says what is wrong with the DNS Service now; empty for nothing.
func dnsProblem(ctx context.Context, api *kubeAPI, nodes []string) string {
	own, err := api.ownDNS(ctx)
	if errors.Is(err, errNotFound) {
		return "Service kube-system/kube-dns does not exist, so that Pods resolve no names; the controller makes it anew: see its log"
	}
	var servers []string
	if err == nil {
		servers, err = api.dnsServers(ctx)
	}
	switch {
	case err != nil:
		return fmt.Sprintf("Service kube-system/kube-dns: %v", err)
	case !own && len(servers) == 0:
		return "Service kube-system/kube-dns is not Fairway's and has no endpoint that is ready, so that Pods resolve no names"
	case !own:
		return ""
	}
	missing := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return slices.Contains(servers, n) })
	if len(missing) == 0 {
		return ""
	}
	return fmt.Sprintf("Service kube-system/kube-dns has no endpoint that is ready on %s; each node's own process makes its EndpointSlice kube-dns-NODE-ipv4 or -ipv6: see its log", strings.Join(missing, ", "))
}

// killHint says how to start a process again: ending it is enough, since it is supervised.
func (r *Report) killHint(role, node string) string {
	for _, p := range r.Processes {
		if p.Role == role && p.Node == node && p.PID > 0 {
			return fmt.Sprintf(": kill %d", p.PID)
		}
	}
	return ""
}

// Text is the report for people.
func (r Report) Text(now time.Time) string {
	var b strings.Builder
	if r.Phase != "" {
		fmt.Fprintf(&b, "fairway is %s, data in %s\n\n", r.phase(), r.DataDir)
		table := tabwriter.NewWriter(&b, 2, 0, 3, ' ', 0)
		fmt.Fprintln(table, "  ROLE\tNODE\tPID\tSTATE\tSINCE\tRESTARTS")
		for _, p := range r.Processes {
			pid, node := "-", "-"
			if p.PID > 0 {
				pid = fmt.Sprint(p.PID)
			}
			if p.Node != "" {
				node = p.Node
			}
			fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s\t%d\n", p.Role, node, pid, p.State, age(now.Sub(p.Since)), p.Restarts)
		}
		_ = table.Flush() // a strings.Builder takes everything
		b.WriteString("\n")
		writeAddresses(&b, r.Addresses)
		for _, p := range r.Processes[1:] {
			if p.Role == roleKubelet {
				fmt.Fprintf(&b, "  %-12s %s\n", p.Node, strings.ReplaceAll(join(r.Addresses.Nodes[p.Node]), ",", "  "))
			}
		}
		fmt.Fprintf(&b, "  %-12s %s\n", "kubeconfig", r.Kubeconfig)
	}
	if len(r.Problems) == 0 {
		b.WriteString("\nall is well\n")
		return b.String()
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "\n! %s\n", p)
	}
	return b.String()
}

func (r Report) phase() string {
	if len(r.Processes) > 0 {
		switch r.Processes[0].State {
		case supervise.Exited:
			return "dead"
		case supervise.Stopped:
			return "stopped"
		}
	}
	return string(r.Phase)
}

// age is a duration as kubectl writes it: 5s, 12m, 3h, 2d.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

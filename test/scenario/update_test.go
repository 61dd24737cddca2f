package scenario

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUpdateFailsNoQuery asks for a name from a node while its agent, and so its DNS server, is replaced, killed, or hangs:
// others answer.
func TestUpdateFailsNoQuery(t *testing.T) {
	for _, dataplane := range []string{"nft", "ebpf"} {
		t.Run(dataplane, func(t *testing.T) {
			useLab(t, dataplane)
			if said, err := env.up("--nodes", "2", "--dataplane", dataplane); err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
			replaceAgent(t, "-TERM", busyClient)
			// One may be under way with the server that is killed.
			replaceAgent(t, "-KILL", "")
			hangAgent(t)
		})
	}
	t.Run("untracked", func(t *testing.T) {
		useLab(t, "untracked")
		if said, err := env.up("--nodes", "2", "--dataplane", "nft", "--dns-notrack"); err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		replaceAgent(t, "-TERM", busyClient)
	})
}

// busyClient has source ports come again after a few queries: what the kernel remembers of them must
// not lead to the server that has ended. One query may be under way, from a port that was used before, when its flow is moved.
const busyClient = "-b 0.0.0.0#$((40000 + i % 20))"

const askedName = "kubernetes.default.svc.cluster.local"

// agentOfNode1 is the process of node 1's agent; 0 while there is none.
func agentOfNode1(t *testing.T) (pid int) {
	for _, p := range fairwayStatus(t).Processes {
		if p.Role == "node" && p.Node == "node-1" {
			pid = p.PID
		}
	}
	return pid
}

// replaceAgent asks again and again, one query after the other, while the node agent gets a signal by which it ends, and
// another one takes its place. dig gets further flags, of query i.
func replaceAgent(t *testing.T, signal, flags string) {
	t.Helper()
	eventually(t, 60*time.Second, func() error { // on a new cluster, DNS is one of the last things that there are
		if r := env.run(env.node, "dig", "+short", "+tries=1", "+time=1", "@10.96.0.10", askedName); strings.TrimSpace(r.stdout) != "10.96.0.1" {
			return fmt.Errorf("no answer before the update: %s", r.all())
		}
		return nil
	})
	asking, enough := filepath.Join(env.dir, "asking"), filepath.Join(env.dir, "enough")
	for _, f := range []string{asking, enough} {
		_ = os.Remove(f) // of another time
	}
	script := `for ((i = 0; ; i++)); do
		out=$(dig +short +tries=1 +time=5 ` + flags + ` @10.96.0.10 ` + askedName + ` 2>&1) && [ "$out" = 10.96.0.1 ] || echo "lost $i: $out"
		((i == 40)) && : > ` + asking + `
		[ -e ` + enough + ` ] && echo "asked $i" && break
	done`
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	type asked struct {
		out []byte
		err error
	}
	done := make(chan asked, 1)
	go func() {
		out, err := env.command(ctx, env.node, "bash", "-c", script).CombinedOutput()
		done <- asked{out, err}
	}()
	eventually(t, 60*time.Second, func() error {
		_, err := os.Stat(asking)
		return err
	})
	before := agentOfNode1(t)
	must(t, env.node, "kill", signal, fmt.Sprint(before))
	eventually(t, 60*time.Second, func() error {
		if now := agentOfNode1(t); now == before || now == 0 {
			return fmt.Errorf("the node agent is %d still", now)
		}
		return nil
	})
	allIsWell(t)
	must(t, env.node, "touch", enough)
	a := <-done
	if a.err != nil || strings.Count(string(a.out), "lost") > 1 {
		t.Errorf("queries while the agent got %s: %v\n%s", signal, a.err, a.out)
	}
	t.Logf("%s: %s", signal, a.out)
}

// hangAgent stops the node agent: names have to be there while it is still stopped. What would have it killed for
// hanging is told that it lives.
func hangAgent(t *testing.T) {
	t.Helper()
	pid := agentOfNode1(t)
	must(t, env.node, "kill", "-STOP", fmt.Sprint(pid))
	alive, stop := context.WithCancel(t.Context())
	defer func() {
		stop()
		must(t, env.node, "kill", "-CONT", fmt.Sprint(pid))
		allIsWell(t)
	}()
	go func() {
		for alive.Err() == nil {
			now := time.Now()
			_ = os.Chtimes(filepath.Join(env.data, "run", "node-node-1.ready"), now, now)
			time.Sleep(time.Second)
		}
	}()
	for _, protocol := range []string{"+notcp", "+tcp"} {
		eventually(t, 60*time.Second, func() error {
			r := env.run(env.node, "dig", "+short", "+tries=1", "+time=5", protocol, "@10.96.0.10", askedName)
			if strings.TrimSpace(r.stdout) != "10.96.0.1" {
				return fmt.Errorf("dig %s: %s", protocol, r.all())
			}
			return nil
		})
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil || !strings.Contains(string(stat), ") T ") {
		t.Errorf("the agent was not stopped all the while: %s %v", stat, err)
	}
}

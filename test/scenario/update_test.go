package scenario

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestUpdateFailsNoQuery asks for a name from the node again and again, one query after the other, while the node agent
// is told to end and another one takes its place, as at an update. Source ports come again after a few queries, as they
// do for a busy client: what the kernel remembers of them must not lead to the server that has ended.
func TestUpdateFailsNoQuery(t *testing.T) {
	for _, dataplane := range []string{"nft", "ebpf"} {
		t.Run(dataplane, func(t *testing.T) {
			useLab(t, dataplane)
			if said, err := env.up("--nodes", "2", "--dataplane", dataplane); err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
			const name = "kubernetes.default.svc.cluster.local"
			agent := func() (pid int) {
				for _, p := range fairwayStatus(t).Processes {
					if p.Role == "node" && p.Node == "node-1" {
						pid = p.PID
					}
				}
				return pid
			}
			script := `for ((i = 0; ; i++)); do
				out=$(dig +short +tries=1 +time=5 -b 0.0.0.0#$((40000 + i % 20)) @10.96.0.10 ` + name + ` 2>&1) && [ "$out" = 10.96.0.1 ] || echo "lost $i: $out"
				((i == 40)) && : > ` + env.dir + `/asking
				[ -e ` + env.dir + `/enough ] && echo "asked $i" && break
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
			exists := func(file string) error {
				if r := env.run(env.node, "test", "-e", env.dir+"/"+file); r.err != nil {
					return fmt.Errorf("no queries yet")
				}
				return nil
			}
			eventually(t, 60*time.Second, func() error { return exists("asking") })
			before := agent()
			must(t, env.node, "kill", "-TERM", fmt.Sprint(before))
			eventually(t, 60*time.Second, func() error {
				if now := agent(); now == before || now == 0 {
					return fmt.Errorf("the node agent is %d still", now)
				}
				return nil
			})
			allIsWell(t)
			must(t, env.node, "touch", env.dir+"/enough")
			a := <-done
			// One may be under way, from a port that was used before, when its flow is moved.
			if a.err != nil || strings.Count(string(a.out), "lost") > 1 {
				t.Errorf("queries during an update: %v\n%s", a.err, a.out)
			}
			t.Logf("%s", a.out)
		})
	}
}

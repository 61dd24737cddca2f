package translate

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func TestCorefile(t *testing.T) {
	for name, tt := range map[string]struct {
		data map[string]string
		ttl  time.Duration // 0 where nothing is to be used
		want []string
	}{
		"good": {map[string]string{"Corefile": ". {\n kubernetes {\n ttl 7\n }\n hosts NodeHosts\n}", "NodeHosts": ""}, 7 * time.Second, nil},
		"something left out": {map[string]string{"Corefile": ". {\n kubernetes {\n ttl 7\n }\n log\n import more.override\n}", "more.override": "erratic"}, 7 * time.Second, []string{
			"ConfigMap kube-system/coredns: data[Corefile] line 5: log is ignored: give fairway node --dns-log all, or errors, or a share such as 1%",
			"ConfigMap kube-system/coredns: data[more.override] line 1: erratic is ignored: Fairway's DNS does not have it",
		}},
		"unreadable": {map[string]string{"Corefile": ". {\n cache x y {\n"}, 0, []string{
			"ConfigMap kube-system/coredns: data[Corefile] line 2: the brace of cache is never closed; nothing of this Corefile is used; nodes go on with the last one that could be read, or with Fairway's defaults where there was none",
		}},
		"nothing": {map[string]string{"Corefile": "# later\n"}, 0, []string{
			"ConfigMap kube-system/coredns: data[Corefile] line 1: no block that serves DNS, so that all names outside the cluster would be refused; write one, .:53 { with the line forward . /etc/resolv.conf in it, or delete the Corefile and its ConfigMap for Fairway's defaults; nothing of this Corefile is used; nodes go on with the last one that could be read, or with Fairway's defaults where there was none",
		}},
		"another key": {map[string]string{"corefile": "."}, 0, []string{"ConfigMap kube-system/coredns: data[Corefile]: the key is missing; nothing of this Corefile is used; nodes go on with the last one that could be read, or with Fairway's defaults where there was none"}},
	} {
		c, problems := Corefile(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"}, Data: tt.data}, nil, "cluster.local", nil, nil, nil)
		if (c == nil) != (tt.ttl == 0) || c != nil && c.TTL != tt.ttl {
			t.Errorf("%s: %+v", name, c)
		}
		var got []string
		for _, p := range problems {
			got = append(got, p.String())
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: problems %q, want %q", name, got, tt.want)
		}
	}
}

// k3s is the Corefile of k3s.
const k3s = `.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
      pods insecure
      fallthrough in-addr.arpa ip6.arpa
    }
    hosts /etc/coredns/NodeHosts {
      ttl 60
      reload 15s
      fallthrough
    }
    prometheus :9153
    cache 30
    loop
    reload
    loadbalance
    import /etc/coredns/custom/*.override
    forward . /etc/resolv.conf
}
import /etc/coredns/custom/*.server
`

// TestDocExamples: the additions that the docs show do what they say, with the
// Corefile of the docs and with that of k3s, and have nothing that is left out.
func TestDocExamples(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/features/coredns.md")
	if err != nil {
		t.Fatal(err)
	}
	maps := map[string]*corev1.ConfigMap{}
	for _, part := range strings.Split(string(doc), "<<EOF\n")[1:] {
		text, _, _ := strings.Cut(part, "\nEOF\n")
		m := &corev1.ConfigMap{}
		if err := yaml.UnmarshalStrict([]byte(text), m); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		maps[m.Name] = m
	}
	for name, corefile := range map[string]string{"docs": maps["coredns"].Data[CorefileKey], "k3s": k3s} {
		main := maps["coredns"].DeepCopy()
		main.Data = map[string]string{CorefileKey: corefile, "NodeHosts": "192.0.2.1 node-1\n"}
		c, problems := Corefile(main, maps["coredns-custom"], "cluster.local", nil, nil, nil)
		if c == nil || len(problems) > 0 || len(c.Blocks) != 3 || len(c.Blocks[0].Rewrites) != 1 || len(c.Blocks[1].Forwards) != 1 || c.Blocks[2].Hosts == nil {
			t.Errorf("%s: %+v, problems %v", name, c, problems)
		}
	}
}

// TestUnusedAdditions: a key that nothing imports is said to be of no use.
func TestUnusedAdditions(t *testing.T) {
	object := func(name string, data map[string]string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}, Data: data}
	}
	for name, tt := range map[string]struct {
		corefile string
		want     []string
	}{
		"all of them": {". {\n hosts custom/names\n}\nimport custom/*.server", nil},
		"one":         {". {\n}\nimport custom/*.server", []string{"data[names]"}},
		"nothing":     {". {\n}\n", []string{"data[a.server]", "data[names]"}},
	} {
		_, problems := Corefile(object("coredns", map[string]string{CorefileKey: tt.corefile}), object("coredns-custom", map[string]string{"a.server": "a.example {\n}\n", "names": ""}), "cluster.local", nil, nil, nil)
		var got []string
		for _, p := range problems {
			if p.Object.Key.Name != "coredns-custom" || p.Reason != ReasonIneffective {
				t.Errorf("%s: %v", name, p)
			}
			got = append(got, p.Field)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

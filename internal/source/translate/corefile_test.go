package translate

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
		c, problems := Corefile(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"}, Data: tt.data}, nil, "cluster.local", nil, nil)
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

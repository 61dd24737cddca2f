package translate

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestAliasOfItself(t *testing.T) {
	for name, problems := range map[string]int{
		"self.shop.svc.cluster.local": 1, "Self.shop.svc.Cluster.local.": 1, "self.other.svc.cluster.local": 0, "self.shop.svc.example": 0, "www.example.com": 0,
	} {
		o := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "self"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: name}}
		got := AliasOfItself(o, "cluster.local.")
		if len(got) != problems || problems > 0 && (got[0].Field != "spec.externalName" || got[0].Reason != ReasonInvalid || got[0].Object.Key.Name != "self") {
			t.Errorf("%s: %v", name, got)
		}
		o.Spec.Type = corev1.ServiceTypeClusterIP
		if got := AliasOfItself(o, "cluster.local"); got != nil {
			t.Errorf("%s, of another type: %v", name, got)
		}
	}
}

// An alias that DNS cannot give is none, and said to be so.
func TestAliasesThatAreNone(t *testing.T) {
	for name, want := range map[string]string{
		strings.Repeat("a", 64) + ".example.com": "at most 63", "192.0.2.77": "is an address", "a b": "is no DNS name",
		strings.Repeat("a", 63) + ".example.com": "",
	} {
		s, problems := Service(&corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: name}})
		if want == "" && (len(problems) > 0 || s.ExternalName != name) || want != "" && (s.ExternalName != "" || len(problems) != 1 || !strings.Contains(problems[0].Message, want)) {
			t.Errorf("%s: %q, %v", name, s.ExternalName, problems)
		}
	}
}

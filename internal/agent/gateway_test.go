package agent

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"

	"fairway.dev/fairway/internal/gateway"
	"fairway.dev/fairway/internal/model"
)

// TestOnlyHere: each gateway tells of its own machine, by name, and of nothing that
// the controller tells for all.
func TestOnlyHere(t *testing.T) {
	ref := model.Ref{Kind: "ConfigMap", Key: model.Key{Namespace: "ns", Name: "tcp"}}
	all := model.Problems{
		{Object: ref, Reason: gateway.ReasonPortInUse, Field: "data", Message: "port TCP 5432 cannot be opened"},
		{Object: ref, Reason: "ServiceMissing", Message: "x"},
		{Object: model.Ref{Kind: "Ingress", Key: model.Key{Namespace: "ns", Name: "web"}}, Reason: gateway.ReasonBackendTLS, Message: "z"},
		{Object: model.Ref{Kind: "Secret", Key: model.Key{Namespace: "ns", Name: "standard"}}, Reason: gateway.ReasonSecretNotFound, Field: "--default-certificate", Message: "y"},
	}
	for node, want := range map[string]string{"": "port TCP 5432 cannot be opened", "a": "Node a: port TCP 5432 cannot be opened"} {
		got := onlyHere(node, all)
		if len(got) != 3 || got[1].Object.Kind != "Ingress" || got[2].Object.Kind != "Secret" || got[0].Message != want || got[0].Field != "data" {
			t.Errorf("node %q: %+v", node, got)
		}
	}
}

func TestTLSSettings(t *testing.T) {
	const suite = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
	for _, c := range []struct {
		version string
		suites  []string
		oldest  uint16
		chosen  []uint16
		refusal string
	}{
		{"1.2", nil, tls.VersionTLS12, nil, ""},
		{"1.3", nil, tls.VersionTLS13, nil, ""},
		{"1.2", []string{suite}, tls.VersionTLS12, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}, ""},
		{"1.1", nil, 0, nil, "--tls-min-version \"1.1\": want 1.2 or 1.3"},
		{"1.3", []string{suite}, 0, nil, "--tls-min-version 1.3 leaves out"},
		{"1.2", []string{"TLS_RSA_WITH_RC4_128_SHA"}, 0, nil, "is none of TLS 1.2 that is safe; those are TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, "},
		{"1.2", []string{"TLS_AES_128_GCM_SHA256"}, 0, nil, "is none of TLS 1.2"},
	} {
		oldest, chosen, err := tlsSettings(GatewayOptions{TLSMinVersion: c.version, TLSCipherSuites: c.suites})
		if c.refusal != "" {
			if err == nil || !strings.Contains(err.Error(), c.refusal) {
				t.Errorf("%s %v: %v", c.version, c.suites, err)
			}
		} else if err != nil || oldest != c.oldest || !slices.Equal(chosen, c.chosen) {
			t.Errorf("%s %v: %x %x %v", c.version, c.suites, oldest, chosen, err)
		}
	}
}

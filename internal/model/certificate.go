package model

import (
	"log/slog"
	"time"
)

// Secret is data that must not be seen in logs: it prints as "[redacted]".
type Secret []byte

// String implements fmt.Stringer.
func (Secret) String() string { return "[redacted]" }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return "[redacted]" }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalJSON implements json.Marshaler.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"[redacted]"`), nil }

// Certificate is the TLS material of one Kubernetes Secret, not yet parsed.
// A Secret that holds none of it has all parts empty.
type Certificate struct {
	Key
	UID string
	// Chain is tls.crt (PEM), PrivateKey is tls.key (PEM), CA is ca.crt (PEM),
	// and CRL is ca.crl (PEM): what the authorities in CA have revoked.
	Chain      []byte
	PrivateKey Secret
	CA, CRL    []byte
	// Names are the lower-case DNS names and the addresses that the certificate
	// is made out for, and NotBefore and NotAfter bound the time in which it is
	// valid; zero where there is no usable pair.
	Names               []string
	NotBefore, NotAfter time.Time
	// RSA tells that the key is one of RSA, by which a signature is expensive.
	RSA bool
	// Problem says what is wrong with the material and how to cure it; empty
	// when Chain and PrivateKey are a usable pair. Set by source/translate.
	Problem string
}

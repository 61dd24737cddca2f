package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

const (
	namespace = "default"
	// host is what clients ask for, and the name in certificates.
	host = "load.test"
	// perIngress is how many paths an Ingress has.
	perIngress = 100
)

func named(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

// slice makes the EndpointSlice of the Service. Those of leaving are about to
// stop: they serve as long as there is nobody else.
func slice(serving, leaving []*backend) *discoveryv1.EndpointSlice {
	yes, no, tcp, port, portName := true, false, corev1.ProtocolTCP, int32(backendPort), "http"
	meta := named("app-1")
	meta.Labels = map[string]string{discoveryv1.LabelServiceName: "app"}
	s := &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &tcp}}}
	for _, b := range serving {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{b.addr}, Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no}})
	}
	for _, b := range leaving {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{b.addr}, Conditions: discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}})
	}
	return s
}

// rules makes an Ingress; extra is a path that only this version of it has.
func rules(i int, extra string) *networkingv1.Ingress {
	prefix := networkingv1.PathTypePrefix
	backend := networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "app", Port: networkingv1.ServiceBackendPort{Number: 80}}}
	http := &networkingv1.HTTPIngressRuleValue{}
	add := func(path string) {
		http.Paths = append(http.Paths, networkingv1.HTTPIngressPath{Path: path, PathType: &prefix, Backend: backend})
	}
	for n := range perIngress {
		add(fmt.Sprintf("/i%d/path-%d", i, n))
	}
	if extra != "" {
		add(extra)
	}
	meta := named(fmt.Sprintf("ingress-%03d", i))
	meta.CreationTimestamp = metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	class := "fairway"
	spec := networkingv1.IngressSpec{IngressClassName: &class, Rules: []networkingv1.IngressRule{{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{HTTP: http}}}}
	if i == 0 {
		// Clients use both ports, so plain HTTP is not to be sent elsewhere.
		meta.Annotations = map[string]string{"nginx.ingress.kubernetes.io/ssl-redirect": "false", "nginx.ingress.kubernetes.io/proxy-read-timeout": "2"}
		add("/app")
		spec.TLS = []networkingv1.IngressTLS{{Hosts: []string{host}, SecretName: "pair"}}
	}
	return &networkingv1.Ingress{ObjectMeta: meta, Spec: spec}
}

// certificate makes a new Secret, and returns its certificate's serial number.
func certificate() (*corev1.Secret, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	serial := big.NewInt(time.Now().UnixNano())
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, "", err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, "", err
	}
	return &corev1.Secret{ObjectMeta: named("pair"), Type: corev1.SecretTypeTLS, Data: map[string][]byte{
		corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}}, serial.String(), nil
}

// objects is everything at the start.
func objects(routes int, backends []*backend) ([]runtime.Object, error) {
	secret, _, err := certificate()
	if err != nil {
		return nil, err
	}
	list := []runtime.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		&networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "fairway"}, Spec: networkingv1.IngressClassSpec{Controller: "fairway.dev/ingress"}},
		&corev1.Service{ObjectMeta: named("app"), Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.9", ClusterIPs: []string{"10.96.0.9"},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}}}},
		secret, slice(backends, nil),
	}
	for i := range max(1, routes/perIngress) {
		list = append(list, rules(i, ""))
	}
	return list, nil
}

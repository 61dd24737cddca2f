package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// certificates makes one of P-256 and one of RSA, as files.
func certificates() (map[string]string, error) {
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	old, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, c := range []struct {
		name  string
		key   crypto.Signer
		hosts []string
	}{{"tls", curve, []string{host, grpcHost}}, {"rsa", old, []string{rsaHost}}} {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: c.hosts[0]}, DNSNames: c.hosts,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key)
		if err != nil {
			return nil, err
		}
		secret, err := x509.MarshalPKCS8PrivateKey(c.key)
		if err != nil {
			return nil, err
		}
		crt := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
		files[c.name+".crt"], files[c.name+".key"], files[c.name+".pem"] = string(crt), string(key), string(crt)+string(key)
	}
	return files, nil
}

func nginxConfig(dir string, hosts int) string {
	const location = `location / { proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_buffering on;
      proxy_set_header X-Request-ID $request_id; proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Host $host;
      proxy_set_header X-Forwarded-Port $server_port; proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Scheme $scheme; proxy_set_header X-Scheme $scheme; }`
	var b strings.Builder
	fmt.Fprintf(&b, `load_module modules/ngx_stream_module.so; user root; worker_processes 2; daemon off; pid %[1]s/nginx.pid; error_log /dev/null;
events { worker_connections 15000; }
http { access_log off; keepalive_requests 1000000; ssl_certificate %[1]s/tls.crt; ssl_certificate_key %[1]s/tls.key; ssl_protocols TLSv1.3;
  http2_max_requests 1000000; client_body_buffer_size 16k; server_names_hash_max_size 65536; server_names_hash_bucket_size 128; keepalive_timeout 300s; client_header_timeout 300s;
  upstream backend { server %[3]s:%[2]d; keepalive 256; keepalive_requests 1000000; }
  upstream calls { server %[3]s:%[4]d; keepalive 256; keepalive_requests 1000000; }
  server { listen 127.0.0.1:8081 backlog=4096; listen 127.0.0.1:8441 ssl http2 backlog=4096; server_name %[5]s; %[10]s
    location %[6]s { proxy_pass http://%[3]s:%[7]d; proxy_http_version 1.1; proxy_set_header Connection Upgrade; proxy_set_header Upgrade $http_upgrade; } }
  server { listen 127.0.0.1:8441 ssl http2; server_name %[8]s; ssl_certificate %[1]s/rsa.crt; ssl_certificate_key %[1]s/rsa.key; %[10]s }
  server { listen 127.0.0.1:8441 ssl http2; server_name %[9]s; location / { grpc_pass grpc://calls; } }
`, dir, backendPort, backendAddr, grpcPort, host, socketPath, socketPort, rsaHost, grpcHost, location)
	for i := 1; i < hosts; i++ {
		fmt.Fprintf(&b, "  server { listen 127.0.0.1:8081; server_name %s; %s }\n", hostName(i), location)
	}
	fmt.Fprintf(&b, `}
stream { access_log off; proxy_timeout 300s; tcp_nodelay on;
  map $ssl_preread_server_name $named { %[8]s %[1]s:%[6]d; default %[1]s:%[2]d; }
  server { listen 127.0.0.1:%[3]d backlog=4096; proxy_pass %[1]s:%[7]d; }
  server { listen 127.0.0.1:%[4]d backlog=4096; proxy_pass %[1]s:%[2]d; }
  server { listen 127.0.0.1:%[5]d backlog=4096; ssl_preread on; proxy_pass $named; }
}
`, backendAddr, backendPort, nginxStreams+messagePort, nginxStreams+bulkPort, nginxStreams+passedPort, echoTLSPort, echoPort, passedHost)
	return b.String()
}

// haproxyConfig returns the configuration and its map of hosts.
func haproxyConfig(dir string, hosts int) (config, list string) {
	var m strings.Builder
	for i := 1; i < hosts; i++ {
		fmt.Fprintf(&m, "%s b\n", hostName(i))
	}
	fmt.Fprintf(&m, "%s b\n%s b\n%s g\n", host, rsaHost, grpcHost)
	return fmt.Sprintf(`global
  maxconn 12000
  no strict-limits
  nbthread 2
  ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  timeout tunnel 300s
  timeout http-keep-alive 300s
  option forwardfor
  http-reuse always
frontend f
  bind 127.0.0.1:8082
  bind 127.0.0.1:8442 ssl crt %[1]s/tls.pem crt %[1]s/rsa.pem alpn h2,http/1.1
  unique-id-format %%{+X}o\ %%ci%%cp%%ts%%rt
  unique-id-header X-Request-ID
  http-request set-header X-Real-IP %%[src]
  http-request set-header X-Forwarded-Host %%[req.hdr(Host)]
  http-request set-header X-Forwarded-Port %%[dst_port]
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Scheme http
  http-request set-header X-Scheme http
  use_backend w if { path %[6]s }
  use_backend %%[req.hdr(host),field(1,:),lower,map(%[1]s/hosts.map)]
backend b
  server s %[3]s:%[2]d
backend g
  server s %[3]s:%[4]d proto h2
backend w
  server s %[3]s:%[5]d
listen messages
  mode tcp
  bind 127.0.0.1:%[7]d
  server s %[3]s:%[8]d
listen bulk
  mode tcp
  bind 127.0.0.1:%[9]d
  server s %[3]s:%[2]d
frontend passed
  mode tcp
  bind 127.0.0.1:%[10]d
  tcp-request inspect-delay 5s
  tcp-request content accept if { req.ssl_hello_type 1 }
  use_backend named if { req.ssl_sni %[12]s }
  default_backend other
backend named
  mode tcp
  server s %[3]s:%[11]d
backend other
  mode tcp
  server s %[3]s:%[2]d
`, dir, backendPort, backendAddr, grpcPort, socketPort, socketPath,
		haproxyStreams+messagePort, echoPort, haproxyStreams+bulkPort, haproxyStreams+passedPort, echoTLSPort, passedHost), m.String()
}

func caddyConfig(dir string) string {
	return fmt.Sprintf(`{
	admin off
	auto_https off
	log {
		output discard
	}
}
http://127.0.0.1:8084, http://%[5]s:8084 {
	reverse_proxy %[6]s %[3]s:%[7]d
	reverse_proxy %[3]s:%[2]d
}
https://%[5]s:8444, https://127.0.0.1:8444 {
	tls %[1]s/tls.crt %[1]s/tls.key
	reverse_proxy %[3]s:%[2]d
}
https://%[8]s:8444 {
	tls %[1]s/rsa.crt %[1]s/rsa.key
	reverse_proxy %[3]s:%[2]d
}
https://%[9]s:8444 {
	tls %[1]s/tls.crt %[1]s/tls.key
	reverse_proxy h2c://%[3]s:%[4]d
}
`, dir, backendPort, backendAddr, grpcPort, host, socketPath, socketPort, rsaHost, grpcHost)
}

# Fairway: `make up` builds, starts, and shows traffic flowing; `make test` runs every test.
# Both need root (network namespaces, nftables) and Go; the tests install Debian packages they miss.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

DATA_DIR ?= $(or $(FAIRWAY_DATA_DIR),/var/lib/fairway)
UP_FLAGS ?=
BENCH_FLAGS ?=
K8S      := v1.37.2
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# One setting for build, test and CI: cgo on and off have separate build
# caches, and a cold build of Kubernetes takes ten minutes on two cores.
export CGO_ENABLED := 0
export GOFLAGS := -buildvcs=false

LDFLAGS     := -s -w -X main.version=$(VERSION)
K8S_LDFLAGS := -s -w -X main.version=$(VERSION) \
	-X k8s.io/component-base/version.gitVersion=$(K8S) \
	-X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37 \
	-X k8s.io/component-base/version.gitTreeState=clean \
	-X k8s.io/component-base/version.gitCommit= -X k8s.io/client-go/pkg/version.gitCommit= \
	-X k8s.io/client-go/pkg/version.gitVersion=$(K8S)

.PHONY: help build up down status test unit scenario lint tools deps conformance bench-up bench-http load-http soak-http bench-l4 load-l4 bench-dns compare-dns soak-dns dnsbench clean root

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: ## executables into bin/
	go build -ldflags '$(LDFLAGS)' -o bin/fairway ./cmd/fairway
	cd standalone && go build -ldflags '-s -w' -o ../bin/fairway-init ./cmd/fairway-init
	cd standalone && go build -ldflags '$(K8S_LDFLAGS)' -o ../bin/fairway-standalone ./cmd/fairway-standalone

up: root build ## start, then show a request through every layer
	bin/fairway up --data-dir '$(DATA_DIR)' --detach $(UP_FLAGS)
	bin/fairway tour --data-dir '$(DATA_DIR)'

down: root ## stop, and leave nothing behind
	bin/fairway down --data-dir '$(DATA_DIR)'

status: ## what runs, where, and what is not well
	bin/fairway status --data-dir '$(DATA_DIR)'

root:
	@[ "$$(id -u)" = 0 ] || { echo 'Fairway makes network namespaces and packet rules: run this as root (sudo make ...).' >&2; exit 1; }

deps: root ## Debian packages that the tests use as clients
	@test/install-deps.sh

tools: ## the linters and the test runner, built from pinned modules
	@mkdir -p bin/tools
	@cd tools && go build -o ../bin/tools/ honnef.co/go/tools/cmd/staticcheck gotest.tools/gotestsum

lint: tools ## gofmt, vet, staticcheck, in both modules
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not gofmt-ed: $$out" >&2; exit 1; }
	go vet ./...
	bin/tools/staticcheck ./...
	cd standalone && go vet ./... && ../bin/tools/staticcheck ./...
	cd test/protocols && go vet ./... && ../../bin/tools/staticcheck ./...
	cd test/bench/dns && go vet . ./world && ../../../bin/tools/staticcheck . ./world # not CoreDNS, which takes minutes

test: root deps build lint unit scenario ## everything

GOTESTSUM = $(CURDIR)/bin/tools/gotestsum --format pkgname-and-test-fails --hide-summary=skipped

unit: root tools ## tests beside the code, on the real kernel where they need one
	@test/coverage.sh
	CGO_ENABLED=1 $(GOTESTSUM) -- -race $$(go list ./... | grep -v /test/)
	$(GOTESTSUM) -- -run NoAllocations ./internal/gateway # the race detector allocates
	cd standalone && $(GOTESTSUM) -- ./...
	cd test/conformance && $(GOTESTSUM) -- ./report
	cd test/protocols && $(GOTESTSUM) -- ./... # the gateway beside h2spec and others' clients

scenario: root tools build ## the article's ten sections and the robustness scripts, end to end
	$(GOTESTSUM) -- -count=1 -timeout 25m ./test/...

# Programs that the conformance run starts, built from the modules of Kubernetes.
CONFORMANCE_FLAGS ?=
conformance: root deps build ## Kubernetes' own SIG network tests on each data path, report into docs/conformance; takes hours
	mkdir -p bin/conformance
	cd test/conformance && go build -ldflags '-s -w' -o ../../bin/conformance/ . github.com/onsi/ginkgo/v2/ginkgo \
		k8s.io/kubernetes/test/images/agnhost k8s.io/kubernetes/test/images/regression-issue-74839
	cd test/bench/dns && go build -ldflags '-s -w' -o ../../../bin/conformance/ ./coredns
	cd test/conformance && go test -c -ldflags '$(K8S_LDFLAGS)' -o ../../bin/conformance/e2e.test ./suite
	bin/conformance/conformance -bin bin -programs bin/conformance \
		-agnhost-source "$$(cd test/conformance && go list -m -f '{{.Dir}}' k8s.io/kubernetes)/test/images/agnhost" \
		-fairway-version '$(VERSION)' -kubernetes-version $(K8S) -out docs/conformance $(CONFORMANCE_FLAGS)

bench-up: root build ## start-up time, memory and sizes into docs/benchmarks
	test/bench/up.sh

bench-l4: root build ## the Service data path beside kube-proxy and direct connections, into docs/benchmarks
	@command -v iperf3 nft >/dev/null || test/install-deps.sh
	cd test/bench/l4/kubeproxy && go build -ldflags '$(K8S_LDFLAGS)' -o ../../../../bin/kube-proxy k8s.io/kubernetes/cmd/kube-proxy
	go build -o bin/bench-l4 ./test/bench/l4
	bin/bench-l4 -out docs/benchmarks $(BENCH_FLAGS)

load-l4: root build ## connections that fail while agents are killed, restarted and switched, with 10,000 Services
	go build -o bin/bench-l4 ./test/bench/l4
	bin/bench-l4 -failures $(BENCH_FLAGS)

BENCH_HTTP_FLAGS ?=
bench-http: root ## the gateway beside nginx, HAProxy, Caddy and httputil.ReverseProxy, eleven minutes, into docs/benchmarks
	@command -v wrk nginx haproxy caddy >/dev/null && test -e /usr/lib/nginx/modules/ngx_stream_module.so || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends wrk nginx-light libnginx-mod-stream haproxy caddy >/dev/null; }
	go run ./test/bench/http $(BENCH_HTTP_FLAGS)

LOAD_HTTP_FLAGS ?=
load-http: root ## requests that fail while everything around the gateway changes, with 10,000 routes
	go build -o bin/fairway -ldflags '$(LDFLAGS)' ./cmd/fairway
	go run ./test/bench/httpload $(LOAD_HTTP_FLAGS)

soak-http: ## the gateway amid changes for ten minutes: goroutines, files and memory
	$(MAKE) --no-print-directory load-http LOAD_HTTP_FLAGS='-soak 10m'

BENCH_DNS_FLAGS ?=
COMPARE_DNS_FLAGS ?=

bench-dns: root deps dnsbench ## DNS beside CoreDNS, ten minutes, into docs/benchmarks
	bin/dnsbench bench $(BENCH_DNS_FLAGS)

compare-dns: root deps dnsbench ## what Fairway's DNS and CoreDNS answer to the same questions, also with the same Corefile
	bin/dnsbench compare $(COMPARE_DNS_FLAGS)
	bin/dnsbench corefile

SOAK_DNS_FLAGS ?= -for 10m
soak-dns: root deps ## DNS under load while the API is away for ten minutes, with a restart in between
	go build -ldflags '$(LDFLAGS)' -o bin/fairway ./cmd/fairway
	cd test/bench/dns && go build -o ../../../bin/dnsbench .
	timeout 20m bin/dnsbench away $(SOAK_DNS_FLAGS)

dnsbench:
	go build -ldflags '$(LDFLAGS)' -o bin/fairway ./cmd/fairway
	cd test/bench/dns && go build -o ../../../bin/dnsbench . && go build -ldflags '-s -w' -o ../../../bin/coredns ./coredns

clean: ## remove what was built
	rm -rf bin

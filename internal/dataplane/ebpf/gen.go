package ebpf

// Making the objects anew needs clang 16, llvm 16 and the headers of libbpf
// (on Debian: clang-16 llvm-16 libbpf-dev); building Fairway needs none of them.
//
//go:generate sh -c "go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -no-global-types -go-package ebpf socket bpf/socket.c -- -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -Ibpf -I/usr/include/$(uname -m)-linux-gnu"
//go:generate sh -c "go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -no-global-types -go-package ebpf ingress bpf/ingress.c -- -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -Ibpf -I/usr/include/$(uname -m)-linux-gnu"

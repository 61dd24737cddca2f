package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"fairway.dev/fairway/test/conformance/cluster"
)

// makeImages lays out the files of the images that the tests ask for, and says
// which command each stands for. Their other programs (nc, dig, curl, ss,
// conntrack and so on) are the machine's, which test/install-deps.sh installs.
func makeImages(dir string, o options) ([]cluster.Image, error) {
	agnhost := filepath.Join(dir, "agnhost")
	if err := os.MkdirAll(agnhost, 0o755); err != nil {
		return nil, err
	}
	for to, from := range map[string]string{
		"agnhost":       filepath.Join(o.programs, "agnhost"),
		"coredns":       filepath.Join(o.programs, "coredns"), // a test has it serve as a Pod's own name server
		"localhost.crt": filepath.Join(o.testdata, "porter", "localhost.crt"),
		"localhost.key": filepath.Join(o.testdata, "porter", "localhost.key"),
	} {
		if err := copyFile(from, filepath.Join(agnhost, to)); err != nil {
			return nil, err
		}
	}
	// What the image runs is /agnhost with the arguments of the Pod, or pause.
	const start = "#!/bin/sh\n[ $# -gt 0 ] || set -- pause\nexec /agnhost \"$@\"\n"
	if err := os.WriteFile(filepath.Join(agnhost, "agnhost-start"), []byte(start), 0o755); err != nil {
		return nil, err
	}
	issue := filepath.Join(dir, "issue")
	if err := os.MkdirAll(issue, 0o755); err != nil {
		return nil, err
	}
	if err := copyFile(filepath.Join(o.programs, "regression-issue-74839"), filepath.Join(issue, "regression-issue-74839")); err != nil {
		return nil, err
	}
	return []cluster.Image{
		{Ref: "*/agnhost", Command: "/agnhost-start", Files: agnhost},
		// The tests look at the addresses of Pods of nginx, not at their answers.
		{Ref: "*/nginx", Command: "/agnhost netexec --http-port=80 --udp-port=-1", Files: agnhost},
		{Ref: "*/regression-issue-74839", Command: "/regression-issue-74839", Files: issue},
		{Ref: "*/busybox", Command: "sh"},
		{Ref: "*/glibc-dns-testing", Command: "sh"},
		{Ref: "*/distroless-iptables", Command: "sh"},
	}, nil
}

// checkPrograms finds what the tests call besides agnhost. Their nc is that of
// OpenBSD, whose options other ones do not know.
func checkPrograms() error {
	for _, name := range []string{"sh", "curl", "wget", "dig", "nslookup", "getent", "hostname", "ss", "conntrack", "nc"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w: run test/install-deps.sh", err)
		}
	}
	if out, _ := exec.Command("nc", "-h").CombinedOutput(); !strings.Contains(string(out), "OpenBSD") {
		return errors.New("nc is not that of OpenBSD: install netcat-openbsd and choose it with update-alternatives --config nc")
	}
	return nil
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

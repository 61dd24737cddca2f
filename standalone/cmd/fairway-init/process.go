package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/standalone/internal/runtime/initspec"
)

// openFiles is the soft limit of open files that a command starts with, if the
// hard one allows: more than the shell's 1024, which servers outgrow, and less
// than what programs that close every possible descriptor choke on.
const openFiles = 65536

// execStage becomes the command of the Process that it is passed. It does not
// return.
func execStage() {
	unix.CloseOnExec(statusFD)
	failure := become(os.NewFile(processFD, "process"))
	data, err := json.Marshal(failure)
	if err == nil {
		_, _ = os.NewFile(statusFD, "status").Write(data)
	}
	os.Exit(failure.Code)
}

// become returns only if it fails.
func become(spec *os.File) *initspec.Failure {
	fail := func(what string, err error) *initspec.Failure {
		return &initspec.Failure{Code: initspec.CodeSetup, Message: what + ": " + err.Error()}
	}
	var p initspec.Process
	if err := json.NewDecoder(spec).Decode(&p); err != nil {
		return fail("process", err)
	}
	spec.Close()
	if len(p.Args) == 0 {
		return fail("process", errors.New("no command"))
	}
	surroundings(&p)
	if err := os.MkdirAll(p.Cwd, 0o755); err != nil {
		return fail("working directory", err)
	}
	// As root, and if root may not (a network file system), as the user below.
	rootChdir := unix.Chdir(p.Cwd)
	if err := takeRights(&p); err != nil {
		return fail("rights of the process", err)
	}
	if rootChdir != nil {
		if err := unix.Chdir(p.Cwd); err != nil {
			return fail("working directory "+p.Cwd, err)
		}
	}
	path, failure := lookPath(p.Args[0], p.Env)
	if failure != nil {
		return failure
	}
	err := unix.Exec(path, p.Args, p.Env)
	code := initspec.CodeNotRunable
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w (its interpreter is missing)", err)
	}
	return &initspec.Failure{Code: code, Message: fmt.Sprintf("exec: %q: %v", p.Args[0], err)}
}

// surroundings sets what needs root and must not stop the command if it fails.
func surroundings(p *initspec.Process) {
	unix.Umask(0o022)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(p.OOMScoreAdj)), 0)
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = min(limit.Max, openFiles)
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	// A process opens /dev/stdout anew, and for that it must own the pipe.
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
			_ = unix.Fchown(fd, int(p.UID), int(p.GID))
		}
	}
}

// takeRights gives up everything that the process shall not have. The calls act
// on this thread alone, which becomes the process when it executes the command.
func takeRights(p *initspec.Process) error {
	keep := map[int]bool{}
	for _, c := range p.Capabilities {
		keep[c] = true
	}
	for c := 0; c <= 63; c++ {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err != nil {
			break // past the last one that this kernel knows
		} else if has == 1 && !keep[c] {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	if err := setIDs(p); err != nil {
		return err
	}
	if p.UID == 0 {
		if err := setCapabilities(keep); err != nil {
			return err
		}
	}
	if p.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no_new_privs: %w", err)
		}
	}
	return nil
}

// setIDs sets groups and user. It avoids package syscall, whose functions
// change every thread.
func setIDs(p *initspec.Process) error {
	var groups unsafe.Pointer
	if len(p.Groups) > 0 {
		groups = unsafe.Pointer(&p.Groups[0])
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(p.Groups)), uintptr(groups), 0); e != 0 {
		return fmt.Errorf("setgroups: %w", e)
	}
	gid, uid := uintptr(p.GID), uintptr(p.UID)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); e != 0 {
		return fmt.Errorf("setgid %d: %w", p.GID, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
		return fmt.Errorf("setuid %d: %w", p.UID, e)
	}
	runtime.KeepAlive(p)
	return nil
}

// setCapabilities makes root's sets the wanted ones, as far as it has them.
func setCapabilities(keep map[int]bool) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	var want [2]uint32
	for c := range keep {
		want[c/32] |= 1 << (c % 32)
	}
	for i := range data {
		data[i].Permitted &= want[i]
		data[i].Effective = data[i].Permitted
		data[i].Inheritable = 0
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// lookPath finds the executable as a shell does, in the PATH of the command's
// own environment.
func lookPath(name string, env []string) (string, *initspec.Failure) {
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			return "", notRunable(name, err)
		}
		return name, nil
	}
	var path string
	for _, e := range env { // the last one counts, as in exec
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		candidate := filepath.Join(dir, name)
		err := executable(candidate)
		if err == nil {
			return candidate, nil
		}
		// A directory of root's in PATH says nothing about what it holds.
		if _, statErr := os.Stat(candidate); statErr == nil && errors.Is(err, fs.ErrPermission) {
			denied = err
		}
	}
	if denied != nil {
		return "", notRunable(name, denied)
	}
	return "", notRunable(name, fs.ErrNotExist)
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return unix.EISDIR
	}
	return unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
}

func notRunable(name string, err error) *initspec.Failure {
	if errors.Is(err, fs.ErrNotExist) {
		return &initspec.Failure{Code: initspec.CodeNotFound, Message: fmt.Sprintf("exec: %q: not found on this machine", name)}
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return &initspec.Failure{Code: initspec.CodeNotRunable, Message: fmt.Sprintf("exec: %q: %v", name, err)}
}

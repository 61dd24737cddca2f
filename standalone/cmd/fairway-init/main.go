package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/standalone/internal/runtime/initspec"
)

// File descriptors that a parent passes.
const (
	controlFD = 3 // the runtime's socket, to the init
	processFD = 3 // the Process as JSON, to the exec stage
	statusFD  = 4 // where the exec stage says why it failed
)

func main() {
	// Namespaces and credentials belong to threads: everything happens on one.
	runtime.LockOSThread()
	switch mode := append(os.Args, "")[1]; mode {
	case "":
		unix.CloseOnExec(controlFD)
		conn := initspec.NewConn(os.NewFile(controlFD, "runtime"))
		os.Exit(run(conn))
	case "exec":
		execStage()
	case "pause":
		pause()
	default:
		fmt.Fprintf(os.Stderr, "fairway-init: unknown mode %q; the fairway node starts this program\n", mode)
		os.Exit(2)
	}
}

// pause is the command of the image "pause": it waits to be stopped.
func pause() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	<-stop
}

// run is the life of a container. It returns its exit code.
func run(conn *initspec.Conn) int {
	var request initspec.Request
	files, err := conn.Receive(&request)
	if err != nil || request.Start == nil {
		return initspec.CodeSetup
	}
	start := request.Start
	fail := func(f *initspec.Failure) int {
		// If the runtime is gone there is nobody left to tell.
		_ = conn.Send(initspec.Reply{Failure: f})
		return f.Code
	}
	if start.Pause {
		s := newSupervisor(conn, start.Process)
		if err := conn.Send(initspec.Reply{Started: true}); err != nil {
			return initspec.CodeSetup
		}
		return s.loop()
	}
	if err := buildRoot(&start.Root); err != nil {
		return fail(&initspec.Failure{Code: initspec.CodeSetup, Message: "container root: " + err.Error()})
	}
	s := newSupervisor(conn, start.Process)
	if f := s.start(0, start.Process, files); f != nil {
		return fail(f)
	}
	return s.loop()
}

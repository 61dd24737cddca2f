package kubelog

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"strconv"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

// Options configure Setup.
type Options struct {
	// Output receives the log; required.
	Output io.Writer
	// Verbosity is klog's level. 0 lets warnings and errors through; 1 and above also informational messages up to
	// that level.
	Verbosity int
	// Drop lists texts that make a line be left out; optional. They are for messages that an embedded component
	// repeats about a thing that is meant to be so.
	Drop []string
}

// Setup directs klog to the output. It changes global state: klog has no other.
func Setup(opts Options) error {
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{
		"logtostderr":     "false",
		"alsologtostderr": "false",
		"stderrthreshold": "FATAL",
		"one_output":      "true", // each line once, in the output of its own severity
		"v":               strconv.Itoa(opts.Verbosity),
	} {
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("set klog's %s: %w", name, err)
		}
	}
	out := newFilter(opts.Output, opts.Drop)
	info := io.Discard
	if opts.Verbosity > 0 {
		info = out
	}
	klog.SetOutputBySeverity("INFO", info)
	klog.SetOutputBySeverity("WARNING", out)
	klog.SetOutputBySeverity("ERROR", out)
	klog.SetOutputBySeverity("FATAL", io.Discard) // goes to stderr by the threshold
	return nil
}

// Zap returns a logger for etcd that writes errors, and warnings too if opts.Verbosity is above 0, to the output.
// etcd warns of every request that takes 100 ms, which on a busy small machine is no news.
func Zap(opts Options) *zap.Logger {
	level := zapcore.ErrorLevel
	if opts.Verbosity > 0 {
		level = zapcore.WarnLevel
	}
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.ISO8601TimeEncoder
	return zap.New(zapcore.NewCore(
		zapcore.NewConsoleEncoder(encoder),
		zapcore.Lock(zapcore.AddSync(newFilter(opts.Output, opts.Drop))),
		level,
	))
}

// filter is a writer that leaves out lines with certain texts. Loggers write one whole message at a time.
type filter struct {
	out  io.Writer
	drop [][]byte
}

func newFilter(out io.Writer, drop []string) filter {
	f := filter{out: out}
	for _, text := range drop {
		f.drop = append(f.drop, []byte(text))
	}
	return f
}

func (f filter) Write(line []byte) (int, error) {
	for _, text := range f.drop {
		if bytes.Contains(line, text) {
			return len(line), nil
		}
	}
	return f.out.Write(line)
}

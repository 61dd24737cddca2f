package staple

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"time"
)

// keptFor is how long files stay of certificates that nobody asks about any
// more: no proof is good for that long.
const keptFor = 30 * 24 * time.Hour

// path is where the proof of a certificate is kept.
func (s *Stapler) path(e *entry) string {
	sum := sha256.Sum256(e.leaf.Raw)
	return filepath.Join(s.options.Dir, hex.EncodeToString(sum[:])+".ocsp")
}

// recall takes up the proof that was kept of a certificate, if it is good still.
// It is checked like an answer: nothing depends on who wrote the file.
func (s *Stapler) recall(e *entry) {
	if s.options.Dir == "" || e.issuer == nil {
		return
	}
	path := s.path(e)
	if info, err := os.Stat(path); err != nil || info.Size() > maxAnswer {
		return
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return
	}
	now := time.Now()
	if answer, err := judge(raw, e, now); err == nil && !answer.NextUpdate.IsZero() {
		s.accept(e, answer, raw, now)
	}
}

// keep writes a proof down for the next start. A file that was cut short is no
// answer, and so does no harm.
func (s *Stapler) keep(e *entry, raw []byte) {
	if s.options.Dir == "" {
		return
	}
	path := s.path(e)
	err := os.MkdirAll(s.options.Dir, 0o700)
	if err == nil {
		err = os.WriteFile(path+".new", raw, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		s.options.Logger.Warn("a proof is not kept for the next start", "error", err)
	}
}

// tidy removes what is of no use any more.
func (s *Stapler) tidy(now time.Time) {
	if s.options.Dir == "" {
		return
	}
	files, _ := filepath.Glob(filepath.Join(s.options.Dir, "*.ocsp*")) // the pattern is right
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && now.Sub(info.ModTime()) > keptFor {
			_ = os.Remove(f)
		}
	}
}

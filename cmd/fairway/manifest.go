package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"fairway.dev/fairway/internal/dialect"
	"github.com/spf13/cobra"
)

// manifestFlags are the flags that name manifests, as in kubectl.
type manifestFlags struct {
	files     []string
	recursive bool
}

func (m *manifestFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringSliceVarP(&m.files, "filename", "f", nil, "`file`, directory, URL, or - for standard input (repeatable)")
	cmd.Flags().BoolVarP(&m.recursive, "recursive", "R", false, "go into the directories of directories")
	_ = cmd.MarkFlagRequired("filename")
	_ = cmd.MarkFlagFilename("filename", "yaml", "yml", "json")
}

// read reads all manifests. What cannot be read is among the errors, and the
// rest is returned all the same.
func (m *manifestFlags) read(ctx context.Context, stdin io.Reader) (inputs []dialect.Input, errs []error) {
	for _, name := range m.files {
		if name == "-" {
			data, err := io.ReadAll(stdin)
			if err != nil {
				errs = append(errs, fmt.Errorf("standard input: %w", err))
				continue
			}
			inputs = append(inputs, dialect.Input{Name: "-", Data: data})
			continue
		}
		if isURL(name) {
			data, err := get(ctx, name)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			inputs = append(inputs, dialect.Input{Name: name, Data: data})
			continue
		}
		found, err := m.find(name)
		if err != nil {
			errs = append(errs, err)
		}
		for _, file := range found {
			data, err := os.ReadFile(file)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			inputs = append(inputs, dialect.Input{Name: file, Data: data})
		}
	}
	return inputs, errs
}

func isURL(name string) bool {
	return strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://")
}

const (
	// fetchTimeout is how long a URL may take.
	fetchTimeout = time.Minute
	// mostFetched is how large a manifest from a URL may be.
	mostFetched = 64 << 20
)

// get fetches the manifest at a URL. Its errors name the URL.
func get(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: answered with %s; check the address, or fetch the file by other means", url, response.Status)
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, mostFetched+1))
	if err == nil && len(data) > mostFetched {
		err = fmt.Errorf("is larger than %d MiB", mostFetched>>20)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	return data, nil
}

// find returns a file, or the manifests of a directory by name.
func (m *manifestFlags) find(name string) (files []string, err error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != name && !m.recursive {
				return filepath.SkipDir
			}
			return nil
		}
		if slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)) {
			files = append(files, path)
		}
		return nil
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("%s: holds no file that ends in .yaml, .yml or .json; name the files, or go deeper with -R", name)
	}
	return files, err
}

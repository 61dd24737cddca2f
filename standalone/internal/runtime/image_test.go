package runtime

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestParseImageMapping(t *testing.T) {
	tests := []struct {
		name, in string
		ref      string
		command  []string
		err      string
	}{
		{name: "plain", in: "nginx=nginx -g x", ref: "nginx", command: []string{"nginx", "-g", "x"}},
		{name: "tag and port", in: "localhost:5000/a/b:1.2=/bin/true", ref: "localhost:5000/a/b:1.2", command: []string{"/bin/true"}},
		{name: "digest", in: "a@sha256:00=x", ref: "a@sha256:00", command: []string{"x"}},
		{name: "double quotes", in: `a=nginx -g "daemon off;" "\"\a\\"`, ref: "a", command: []string{"nginx", "-g", "daemon off;", `"\a\`}},
		{name: "single quotes", in: `a=sh -c 'echo "$A\n"'`, ref: "a", command: []string{"sh", "-c", `echo "$A\n"`}},
		{name: "backslash", in: `a=x\ y z`, ref: "a", command: []string{"x y", "z"}},
		{name: "quotes within a word", in: `a=--x="a b"c ''`, ref: "a", command: []string{"--x=a bc", ""}},
		{name: "more equal signs", in: "a=env A=b x", ref: "a", command: []string{"env", "A=b", "x"}},
		{name: "spaces", in: "a=  x \t y  ", ref: "a", command: []string{"x", "y"}},
		{name: "no command", in: "nginx", err: "want REF=COMMAND"},
		{name: "empty command", in: "nginx=  ", err: "want REF=COMMAND"},
		{name: "no reference", in: "=x", err: "want REF=COMMAND"},
		{name: "open quote", in: `a=x "y`, err: "quote \" is not closed"},
		{name: "trailing backslash", in: `a=x \`, err: "backslash"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseImageMapping(tt.in)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), "image mapping") {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(ImageMapping{Ref: tt.ref, Command: tt.command}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestImageCommand(t *testing.T) {
	m := newImageMap([]ImageMapping{
		{Ref: "nginx", Command: []string{"nginx"}},
		{Ref: "nginx:1.25", Command: []string{"nginx-1.25"}},
		{Ref: "nginx:1.2*", Command: []string{"nginx-1.2x"}},
		{Ref: "*/agnhost", Command: []string{"/agnhost"}},
		{Ref: "registry.k8s.io/e2e-test-images/*", Command: []string{"e2e"}},
		{Ref: "registry.k8s.io/e2e-test-images/busybox:*", Command: []string{"e2e-busybox"}},
		{Ref: "docker.io/bitnami/kafka", Command: []string{"kafka"}},
		{Ref: "pinned@sha256:aa", Command: []string{"pinned"}},
		{Ref: "localhost:5000/app", Command: []string{"app"}},
		{Ref: "app:latest", Command: []string{"latest-app"}},
		{Ref: "twice", Command: []string{"first"}},
		{Ref: "twice", Command: []string{"second"}},
		{Ref: "quay.io/*:v2", Command: []string{"quay-v2"}},
	})
	tests := []struct {
		image string
		want  string
	}{
		{"nginx", "nginx"},
		{"nginx:latest", "nginx"},
		{"docker.io/nginx:1.30", "nginx"},
		{"docker.io/library/nginx:1.25", "nginx-1.25"},
		{"index.docker.io/library/nginx", "nginx"},
		{"nginx:1.27@sha256:bb", "nginx-1.2x"},
		{"nginx@sha256:bb", "nginx"},
		{"other/nginx", ""},
		{"example.com/nginx", ""},
		{"mynginx", ""},
		{"registry.k8s.io/e2e-test-images/agnhost:2.66.1", "e2e"},
		{"example.com/x/agnhost:2", "/agnhost"},
		{"registry.k8s.io/e2e-test-images/busybox:1.36", "e2e-busybox"},
		{"bitnami/kafka:3", "kafka"},
		{"pinned@sha256:aa", "pinned"},
		{"pinned:1@sha256:aa", "pinned"},
		{"pinned@sha256:ab", ""},
		{"pinned", ""},
		{"localhost:5000/app:1", "app"},
		{"app", "latest-app"},
		{"app:1", ""},
		{"twice", "second"},
		{"quay.io/a/b:v2", "quay-v2"},
		{"quay.io/a/b:v3", ""},
		{"fairway.dev/echo", "/.fairway/bin/fairway echo"},
		{"fairway.dev/echo:v1", "/.fairway/bin/fairway echo"},
		{"registry.k8s.io/pause:3.10.2", "/.fairway/init pause"},
		{"pause", "/.fairway/init pause"},
	}
	for _, tt := range tests {
		t.Run(tt.image, func(t *testing.T) {
			got, err := m.command(tt.image, nil, nil)
			if (err == nil) != (tt.want != "") || strings.Join(got.args, " ") != tt.want {
				t.Errorf("got %q %v, want %q", got.args, err, tt.want)
			}
		})
	}
}

// TestEntrypoint puts command and args together as Kubernetes documents it
// (kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container).
func TestEntrypoint(t *testing.T) {
	m := newImageMap([]ImageMapping{{Ref: "nginx", Command: []string{"nginx", "-g", "x"}}})
	tests := []struct {
		name          string
		image         string
		command, args []string
		want          []string
	}{
		{"image", "nginx", nil, nil, []string{"nginx", "-g", "x"}},
		{"image and args", "nginx", nil, []string{"-t"}, []string{"nginx", "-g", "x", "-t"}},
		{"command", "nginx", []string{"sh"}, nil, []string{"sh"}},
		{"command and args", "nginx", []string{"sh"}, []string{"-c", "true"}, []string{"sh", "-c", "true"}},
		{"unmapped with a command", "busybox", []string{"sh"}, []string{"-c", "true"}, []string{"sh", "-c", "true"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := m.command(tt.image, tt.command, tt.args)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got.args); diff != "" {
				t.Error(diff)
			}
		})
	}
	if got, err := m.command("nginx", nil, []string{"a"}); err == nil {
		got.args[0] = "changed"
		if again, _ := m.command("nginx", nil, nil); again.args[0] != "nginx" {
			t.Error("the mapping can be changed through a command")
		}
	}
}

func TestParseImageFiles(t *testing.T) {
	dir := t.TempDir()
	got, err := ParseImageFiles("example.com/app:1=" + dir + "/")
	if err != nil || got != (ImageFiles{Ref: "example.com/app:1", Dir: dir}) {
		t.Errorf("got %+v %v", got, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]string{
		"app": "want REF=DIR", "=" + dir: "want REF=DIR", "app=relative": "absolute path", "app=" + file: "is not a directory",
		"app=" + dir + "/missing": "no such file",
	} {
		if _, err := ParseImageFiles(value); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), value) {
			t.Errorf("%s: error %v, want %q in it", value, err, want)
		}
	}
}

// TestOverrideBuiltin lets a mapping replace a built-in image.
func TestOverrideBuiltin(t *testing.T) {
	m := newImageMap([]ImageMapping{{Ref: "fairway.dev/echo", Command: []string{"mine"}}, {Ref: "*", Command: []string{"any"}}})
	for ref, want := range map[string]string{"fairway.dev/echo": "mine", "whatever/else": "any", "registry.k8s.io/pause": "/.fairway/init"} {
		if got, err := m.command(ref, nil, nil); err != nil || got.args[0] != want {
			t.Errorf("%s: %v %v, want %s", ref, got.args, err, want)
		}
	}
}

// TestImageService checks the answers that kubelet goes by.
func TestImageService(t *testing.T) {
	ctx := context.Background()
	r := &Runtime{images: newImageMap([]ImageMapping{{Ref: "nginx", Command: []string{"nginx"}}}), opts: Options{Dir: t.TempDir()}}
	s := &imageService{r}
	pulled, err := s.PullImage(ctx, &runtimeapi.ImageSpec{Image: "example.com/any:1"}, nil, nil)
	if err != nil || pulled == "" {
		t.Fatalf("pull: %q %v", pulled, err)
	}
	for _, ref := range []string{"example.com/any:1", pulled} {
		got, err := s.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: ref}, false)
		if err != nil || got.Image.Id != pulled || got.Image.Size == 0 || got.Image.Uid != nil || got.Image.Username != "" {
			t.Errorf("status of %s: %v %v", ref, got, err)
		}
	}
	same, _ := s.PullImage(ctx, &runtimeapi.ImageSpec{Image: "docker.io/library/nginx"}, nil, nil)
	if other, _ := s.PullImage(ctx, &runtimeapi.ImageSpec{Image: "nginx"}, nil, nil); other != same {
		t.Error("one image has two ids")
	}
	list, err := s.ListImages(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, img := range list {
		names = append(names, img.RepoTags...)
	}
	if diff := cmp.Diff([]string{"example.com/any:1", "fairway.dev/echo:latest", "nginx:latest", "pause:latest"}, names); diff != "" {
		t.Error(diff)
	}
	if err := s.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: pulled}); err != nil {
		t.Fatal(err)
	}
	if list, _ := s.ListImages(ctx, &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "example.com/any:1"}}); len(list) != 0 {
		t.Errorf("still there: %v", list)
	}
	if info, err := s.ImageFsInfo(ctx); err != nil || len(info.ImageFilesystems) != 1 || info.ImageFilesystems[0].FsId.Mountpoint == "" {
		t.Errorf("file system: %v %v", info, err)
	}
}

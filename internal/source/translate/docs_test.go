package translate

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestEveryAnnotationHasAPage holds docs/annotations to the annotations that
// are read: each is named in full on a page of its own or of its family, and
// the index leads to every page.
func TestEveryAnnotationHasAPage(t *testing.T) {
	const dir = "../../../docs/annotations"
	paths, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		pages[filepath.Base(path)] = string(text)
	}
	index := pages["README.md"]
	delete(pages, "README.md")

	known := slices.Concat(
		ingressAnnotations, annotationsTLS, annotationsUpstream, annotationsLoadBalancerIPs, annotationsAddressPool, annotationsSharedIP,
		[]string{annotationIngressClass, AnnotationNetworks, corev1.AnnotationLoadBalancerSourceRangesKey},
	)
	for _, name := range known {
		named := func(text string) bool {
			return strings.Contains(text, "`"+name+"`") || strings.Contains(text, "# "+name+"\n")
		}
		found := false
		for page, text := range pages {
			if named(text) && strings.Contains(index, "("+page+")") {
				found = true
			}
		}
		if !found {
			t.Errorf("no page that the index leads to tells of %s", name)
		}
		if short := name[strings.LastIndexByte(name, '/')+1:]; !strings.Contains(index, short+"`") {
			t.Errorf("the index does not name %s", name)
		}
	}
	for page, text := range pages {
		if !strings.Contains(index, "("+page+")") {
			t.Errorf("the index does not lead to %s", page)
		}
		for _, m := range regexp.MustCompile("`((?:fairway\\.dev|nginx\\.ingress\\.kubernetes\\.io|metallb\\.io|metallb\\.universe\\.tf)/[A-Za-z-]+)`").FindAllStringSubmatch(text, -1) {
			if name := m[1]; !slices.Contains(known, name) && name != Controller {
				t.Errorf("%s tells of %s, which nothing reads", page, name)
			}
		}
	}
}

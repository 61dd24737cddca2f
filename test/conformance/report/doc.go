// Package report makes the conformance report from what Ginkgo tells of its
// runs: one JSON file for each data path, and one page of Markdown over all of
// them.
//
// It owns the reading of Ginkgo's reports, the choice of tests with the reason
// for each that is left out, the check that no conformance test is missing, and
// the rendering. The list of conformance tests is Kubernetes' own.
//
// It must not run anything and must not forgive a failure.
package report

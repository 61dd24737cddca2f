// Package dialect turns manifests that the Kubernetes API refuses today, but
// whose meaning is plain, into ones that it takes: API versions of the past,
// fields that were left out, and fields that only people's articles know.
//
// It owns reading documents of YAML and JSON, keeping the order of their keys
// and the exact text of their values, and the conversions. Each change is
// told as a [Remark], each document that cannot be converted as a [Problem];
// what the API takes as it is passes through untouched. It is pure: it opens
// no file and talks to no cluster. docs/dialect.md lists what is converted.
package dialect

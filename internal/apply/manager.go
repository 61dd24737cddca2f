package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/retry"
)

// olderManager is what older versions applied as, and what Fairway keeps its
// own objects as.
const olderManager = "fairway"

// adopt makes what an older version applied FieldManager's: it did so by the
// name under which Fairway keeps its own objects. Those are left out, so that a
// change to one of them is a conflict. It returns the object as it is then, and
// the manager to apply it as, which is the old one in a dry run.
func (a *Applier) adopt(ctx context.Context, resource dynamic.ResourceInterface, u *unstructured.Unstructured) (*unstructured.Unstructured, string, error) {
	if a.options.Kept != nil && a.options.Kept(u.GetKind(), u.GetNamespace(), u.GetName(), u.GetLabels()) || !adoptable(u.GetManagedFields()) {
		return u, FieldManager, nil
	}
	if a.options.DryRun {
		return u, olderManager, nil
	}
	now := u
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		fields := now.GetManagedFields()
		for i := range fields {
			if olderApplied(fields[i]) {
				fields[i].Manager = FieldManager
			}
		}
		// With the version, this fails where somebody has written since.
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": now.GetResourceVersion(), "managedFields": fields}})
		if err != nil {
			return err
		}
		after, err := resource.Patch(ctx, u.GetName(), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: FieldManager})
		if err == nil {
			now = after
			return nil
		}
		if newest, getErr := resource.Get(ctx, u.GetName(), metav1.GetOptions{}); getErr == nil {
			now = newest
		}
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("taking over what an older version applied: %w", err)
	}
	return now, FieldManager, nil
}

// adoptable reports whether an older version applied the object and this one has not.
func adoptable(fields []metav1.ManagedFieldsEntry) bool {
	return slices.ContainsFunc(fields, olderApplied) && !slices.ContainsFunc(fields, func(f metav1.ManagedFieldsEntry) bool {
		return f.Manager == FieldManager && f.Operation == metav1.ManagedFieldsOperationApply
	})
}

func olderApplied(f metav1.ManagedFieldsEntry) bool {
	return f.Manager == olderManager && f.Operation == metav1.ManagedFieldsOperationApply
}

package state

import "testing"

func TestEditorLeavesTablesAlone(t *testing.T) {
	var empty Table[int, string]
	e := empty.Edit()
	for i := range 500 {
		e.Set(i, "a")
	}
	first := e.Table()
	for i := range 500 {
		e.Set(i, "b")
	}
	e.Delete(7)
	second := e.Table()

	if empty.Len() != 0 || first.Len() != 500 || second.Len() != 499 {
		t.Fatalf("lengths %d, %d, %d", empty.Len(), first.Len(), second.Len())
	}
	for i := range 500 {
		if v, _ := first.Get(i); v != "a" {
			t.Fatalf("first[%d] = %q after later edits", i, v)
		}
		if v, ok := second.Get(i); ok == (i == 7) || ok && v != "b" {
			t.Fatalf("second[%d] = %q, %v", i, v, ok)
		}
	}
	changed := 0
	for range Diff(first, second) {
		changed++
	}
	if changed != 500 {
		t.Errorf("diff has %d rows, want 500", changed)
	}
	if _, ok := e.Get(7); ok {
		t.Error("deleted row is still there")
	}
}

#!/usr/bin/env bash
# Fails when less than 90 % of the statements of one of the pure packages, on which everything stands, are tested.
set -euo pipefail
go test -cover ./internal/{model,state,plan,reconcile,httppath,source/translate,gateway/router,lb/ipam,dialect} |
  awk '{print $2, $5} {sub("%", "", $5); if ($5 + 0 < 90) low = low " " $2} END {if (low) {print "less than 90 %:" low; exit 1}}'

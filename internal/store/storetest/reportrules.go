package storetest

import (
	"tidelock.dev"
)

var reportRuleTests = []test{
	{"are added, listed and removed", func(w world) {
		site, shop := w.site(), w.project(w.group(0, "market").ID, "shop")
		rules, err := w.ReportRules(w.Context(), site.ID)
		w.ok(err)
		equal(w, rules, []tidelock.ReportRule{})
		sarif := tidelock.ReportRule{Project: site.ID, Type: "application/sarif+json", Key: "-----BEGIN", Creator: 1, CreatedAt: start}
		made, err := w.AddReportRule(w.Context(), sarif)
		w.ok(err)
		sarif.ID, sarif.CreatedAt = made.ID, at(0)
		equal(w, made, sarif)
		sbom, err := w.AddReportRule(w.Context(), tidelock.ReportRule{Project: site.ID, Type: "application/spdx+json", CreatedAt: start})
		w.ok(err)
		_, err = w.AddReportRule(w.Context(), tidelock.ReportRule{Project: shop.ID, Type: sarif.Type, CreatedAt: start})
		w.ok(err)
		rules, err = w.ReportRules(w.Context(), site.ID)
		w.ok(err)
		equal(w, rules, []tidelock.ReportRule{sarif, sbom})

		w.kind(w.RemoveReportRule(w.Context(), shop.ID, sarif.ID), tidelock.NotFound)
		w.ok(w.RemoveReportRule(w.Context(), site.ID, sarif.ID))
		w.kind(w.RemoveReportRule(w.Context(), site.ID, sarif.ID), tidelock.NotFound)
		w.ok(w.DeleteProject(w.Context(), site.ID))
		rules, err = w.ReportRules(w.Context(), site.ID)
		w.ok(err)
		equal(w, rules, []tidelock.ReportRule{})
	}},

	{"are one for each type, of a project that exists", func(w world) {
		rule := tidelock.ReportRule{Project: w.site().ID, Type: "application/sarif+json"}
		errs := together(4, func(int) error {
			_, err := w.AddReportRule(w.Context(), rule)
			return err
		})
		equal(w, succeeded(errs), 1)
		for _, err := range errs {
			if err != nil {
				w.kind(err, tidelock.Conflict)
			}
		}
		_, err := w.AddReportRule(w.Context(), tidelock.ReportRule{Project: 99, Type: "x/y"})
		w.kind(err, tidelock.NotFound)
	}},
}

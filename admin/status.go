package admin

import (
	"net/http"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

func showStatus(c *call) error {
	if err := c.params(); err != nil {
		return err
	}
	s, err := c.ledger.Status()
	if err != nil {
		return err
	}
	zone, err := quota.LoadZone(c.ledger.Zone())
	if err != nil {
		return err
	}
	answer := Status{
		Version: c.gate.Version(), OpenReservations: s.OpenReservations,
		Keys: s.Keys, Groups: s.Groups,
		Store: StoreStatus{Engine: s.Store.Engine, Healthy: true, SizeBytes: s.Store.SizeBytes},
	}
	answer.Alerts.At, answer.Alerts.On, answer.Alerts.Forecast = c.ledger.AlertRules()
	answer.Alerts.Webhooks = []WebhookRule{}
	for _, t := range c.gate.Targets() {
		answer.Alerts.Webhooks = append(answer.Alerts.Webhooks, t.rule())
	}
	today, err := c.ledger.Report(c.now, ledger.ReportQuery{
		From: c.now, To: c.now.Add(time.Nanosecond), Step: ledger.PerDay, Zone: zone,
	})
	if err == nil {
		answer.Totals = &today.Totals
	} else { // of a store that fails, too, the status is told
		answer.Store.Healthy, answer.Store.Problem, answer.Store.Since = false, err.Error(), moment(c.now)
	}
	if h := c.ledger.Health(); h != nil {
		answer.Store.Healthy, answer.Store.Problem, answer.Store.Since = false, h.Err.Error(), moment(h.Since)
	}
	if s.Store.LastSync != 0 {
		answer.Store.LastSync = moment(time.Unix(0, s.Store.LastSync))
	}
	return c.json(http.StatusOK, answer)
}

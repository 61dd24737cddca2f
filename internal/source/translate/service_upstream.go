package translate

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairway.dev/fairway/internal/model"
)

// The annotations on a Service that say how the gateway treats its endpoints.
const (
	annotationHealthCheck    = "fairway.dev/health-check"
	annotationHealthPath     = "fairway.dev/health-check-path"
	annotationHealthHost     = "fairway.dev/health-check-host"
	annotationHealthStatus   = "fairway.dev/health-check-status"
	annotationHealthService  = "fairway.dev/health-check-service"
	annotationHealthPort     = "fairway.dev/health-check-port"
	annotationHealthInterval = "fairway.dev/health-check-interval"
	annotationHealthTimeout  = "fairway.dev/health-check-timeout"
	annotationHealthyAfter   = "fairway.dev/health-check-healthy-threshold"
	annotationUnhealthyAfter = "fairway.dev/health-check-unhealthy-threshold"
)

var annotationsHealth = []string{
	annotationHealthCheck, annotationHealthPath, annotationHealthHost, annotationHealthStatus, annotationHealthService,
	annotationHealthPort, annotationHealthInterval, annotationHealthTimeout, annotationHealthyAfter, annotationUnhealthyAfter,
}

// annotationSlowStart is how long new endpoints warm up.
const annotationSlowStart = "fairway.dev/slow-start"

// The annotations that bound what is under way.
const (
	annotationMaxRequests    = "fairway.dev/max-requests"
	annotationMaxConnections = "fairway.dev/max-connections"
	annotationMaxPending     = "fairway.dev/max-pending-requests"
)

// annotationProxyOut has connections to endpoints begin with a PROXY header.
const annotationProxyOut = "fairway.dev/proxy-protocol"

// annotationIdle is how long connections and sessions of TCP and UDP ports may
// carry nothing.
const annotationIdle = "fairway.dev/idle-timeout"

var annotationsUpstream = append([]string{annotationProxyOut, annotationIdle, annotationSlowStart, annotationMaxRequests, annotationMaxConnections, annotationMaxPending}, annotationsHealth...)

// defaultMaxPending is Envoy's.
const defaultMaxPending = 1024

// What applies where a health check does not say it: the status codes are kubelet's.
const (
	defaultHealthInterval = 10 * time.Second
	defaultHealthTimeout  = 2 * time.Second
	defaultHealthyAfter   = 2
	defaultUnhealthyAfter = 3
)

var defaultHealthStatus = []model.StatusRange{{Low: 200, High: 399}}

// serviceUpstream reads how the gateway treats the endpoints; nil for as by default.
func serviceUpstream(r *report, o *corev1.Service) *model.ServiceUpstream {
	a := serviceAnnotations{r, o}
	u := &model.ServiceUpstream{
		Health: a.health(), SlowStart: a.time(annotationSlowStart, 0, time.Second, time.Hour), Limits: a.limits(), Proxy: a.proxy(),
		Idle: a.time(annotationIdle, 0, time.Second, 30*24*time.Hour),
	}
	if *u == (model.ServiceUpstream{}) {
		return nil
	}
	return u
}

// serviceAnnotations reads the annotations of a Service.
type serviceAnnotations struct {
	*report
	object *corev1.Service
}

func (a serviceAnnotations) get(name string) (string, bool) {
	v, ok := a.object.Annotations[name]
	return strings.TrimSpace(v), ok
}

// time reads a time from lowest to highest.
func (a serviceAnnotations) time(name string, fallback, lowest, highest time.Duration) time.Duration {
	v, ok := a.get(name)
	if !ok {
		return fallback
	}
	d, ok := parseTime(v)
	if !ok || d < lowest || d > highest {
		taken := "It is ignored"
		if fallback != 0 {
			taken = "It is taken as " + fallback.String()
		}
		a.invalid(annotationField(name), "%q is no time from %s to %s; write seconds as a number, or with a unit such as 500ms. %s", v, lowest, highest, taken)
		return fallback
	}
	return d
}

// number reads a number from lowest to highest.
func (a serviceAnnotations) number(name string, fallback, lowest, highest int) int {
	v, ok := a.get(name)
	if !ok {
		return fallback
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < lowest || n > highest {
		taken := "It is ignored"
		if fallback != 0 {
			taken = "It is taken as " + strconv.Itoa(fallback)
		}
		a.invalid(annotationField(name), "%q is no number from %d to %d. %s", v, lowest, highest, taken)
		return fallback
	}
	return n
}

// ineffective reports those of names that are set.
func (a serviceAnnotations) ineffective(why string, names ...string) {
	for _, name := range names {
		if _, ok := a.get(name); ok {
			a.add(ReasonIneffective, annotationField(name), "has no effect %s", why)
		}
	}
}

// What may stand in a request for a path or of a host: nothing that ends it.
var (
	requestPath = regexp.MustCompile(`^/[!-~]*$`)
	requestHost = regexp.MustCompile(`^[A-Za-z0-9._\[\]:-]+$`)
)

// health reads the health check; nil for none.
func (a serviceAnnotations) health() *model.HealthCheck {
	kind, ok := a.get(annotationHealthCheck)
	if !ok {
		a.ineffective("without "+annotationHealthCheck+"; add that with http, https, tcp, grpc or grpcs", annotationsHealth[1:]...)
		return nil
	}
	h := &model.HealthCheck{}
	forHTTP := []string{annotationHealthPath, annotationHealthStatus}
	switch kind {
	case "http", "https":
		h.Kind, h.TLS = model.CheckHTTP, kind == "https"
		a.ineffective("with a check by "+kind+"; it is for grpc", annotationHealthService)
		h.Status = a.statuses()
	case "grpc", "grpcs":
		h.Kind, h.TLS = model.CheckGRPC, kind == "grpcs"
		a.ineffective("with a check by "+kind+"; it is for http", forHTTP...)
		h.Service, _ = a.get(annotationHealthService)
	case "tcp":
		a.ineffective("with a check by tcp", append(forHTTP, annotationHealthService, annotationHealthHost)...)
	default:
		a.invalid(annotationField(annotationHealthCheck), "%q is no way to check; use http, https, tcp, grpc or grpcs. Endpoints are not checked until then", kind)
		return nil
	}
	// What was meant cannot be told, and asking for something else could leave
	// out every endpoint.
	usable := true
	if h.Kind == model.CheckHTTP {
		h.Path, usable = a.text(annotationHealthPath, requestPath, "/", "path; write one such as /healthz")
	}
	if h.Kind != model.CheckTCP {
		host, ok := a.text(annotationHealthHost, requestHost, "", "host name; write one such as app.example.com")
		h.Host, usable = host, usable && ok
	}
	h.Port = uint16(a.number(annotationHealthPort, 0, 1, 65535))
	h.Interval = a.time(annotationHealthInterval, defaultHealthInterval, time.Second, time.Hour)
	h.Timeout = a.time(annotationHealthTimeout, min(defaultHealthTimeout, h.Interval), 10*time.Millisecond, time.Minute)
	h.HealthyAfter = a.number(annotationHealthyAfter, defaultHealthyAfter, 1, 100)
	h.UnhealthyAfter = a.number(annotationUnhealthyAfter, defaultUnhealthyAfter, 1, 100)
	if !usable {
		return nil
	}
	return h
}

// proxy reads the version of the PROXY protocol; 0 for none.
func (a serviceAnnotations) proxy() uint8 {
	v, ok := a.get(annotationProxyOut)
	switch {
	case !ok:
	case v == "v1":
		return 1
	case v == "v2":
		return 2
	default:
		a.invalid(annotationField(annotationProxyOut), "%q is no version of the PROXY protocol; use v1 or v2. Connections begin without a header until then", v)
	}
	return 0
}

// limits reads what may be under way; nil for everything.
func (a serviceAnnotations) limits() *model.UpstreamLimits {
	const most = 1 << 20
	l := model.UpstreamLimits{Requests: a.number(annotationMaxRequests, 0, 1, most), Connections: a.number(annotationMaxConnections, 0, 1, most)}
	if l.Connections > 0 {
		l.Pending = a.number(annotationMaxPending, defaultMaxPending, 0, most)
	} else {
		a.ineffective("without "+annotationMaxConnections+": nothing has to wait", annotationMaxPending)
	}
	if l == (model.UpstreamLimits{}) {
		return nil
	}
	return &l
}

// text reads a value that has to match an expression; false if it does not.
func (a serviceAnnotations) text(name string, re *regexp.Regexp, fallback, what string) (string, bool) {
	v, ok := a.get(name)
	switch {
	case !ok:
		return fallback, true
	case !re.MatchString(v):
		a.invalid(annotationField(name), "%q is no %s. Endpoints are not checked until then", v, what)
		return "", false
	}
	return v, true
}

// statuses reads status codes and ranges of them.
func (a serviceAnnotations) statuses() []model.StatusRange {
	v, ok := a.get(annotationHealthStatus)
	if !ok {
		return defaultHealthStatus
	}
	var out []model.StatusRange
	for _, part := range commaList(v) {
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		from, errFrom := strconv.Atoi(strings.TrimSpace(low))
		to, errTo := strconv.Atoi(strings.TrimSpace(high))
		if errFrom != nil || errTo != nil || from < 100 || to > 599 || from > to {
			a.invalid(annotationField(annotationHealthStatus), "%q is no status code nor a range of them; write such as 200-299,401. 200-399 is used", part)
			return defaultHealthStatus
		}
		out = append(out, model.StatusRange{Low: from, High: to})
	}
	if len(out) == 0 {
		a.invalid(annotationField(annotationHealthStatus), "is empty; write such as 200-299,401. 200-399 is used")
		return defaultHealthStatus
	}
	return out
}

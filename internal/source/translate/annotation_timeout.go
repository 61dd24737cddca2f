package translate

const (
	annotationConnectTimeout = prefixNginx + "proxy-connect-timeout"
	annotationReadTimeout    = prefixNginx + "proxy-read-timeout"
	annotationSendTimeout    = prefixNginx + "proxy-send-timeout"
)

var annotationsTimeout = []string{annotationConnectTimeout, annotationReadTimeout, annotationSendTimeout}

// timeoutAnnotations reads the timeouts towards the backend. As in nginx those
// for reading and sending run between two operations, not over the whole
// request.
func (in *ingress) timeoutAnnotations(s *settings) {
	s.filters.ConnectTimeout = in.seconds(annotationConnectTimeout)
	s.filters.ReadTimeout = in.seconds(annotationReadTimeout)
	s.filters.SendTimeout = in.seconds(annotationSendTimeout)
}

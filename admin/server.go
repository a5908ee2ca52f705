// Package admin is the unix socket through which a running vipd is asked and
// told: HTTP with JSON, for the command line and for scripts.
//
//	GET  /v1/status   what is served, by whom, and what is wrong
//	POST /v1/reload   read the configuration again; returns when a pass has served it
//	POST /v1/plan     what a configuration sent along would change; changes nothing
//
// There is no TCP listener. The mode of the socket says who may ask (owner and
// group); to tell something, the peer must be root or the user vipd runs as, by
// SO_PEERCRED (unix(7)).
package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vipd/config"
	"vipd/lb"
	"vipd/proxier"
	"vipd/reconciler"
)

// maxBody is the greatest request: all files of a configuration, in JSON.
const maxBody = 96 << 20

// Daemon is what the socket gives access to.
type Daemon interface {
	// Status returns all but the services, and those apart.
	Status(ctx context.Context) (reconciler.Status, iter.Seq[reconciler.ServiceStatus])
	// Reload returns an error if the configuration was refused or the pass failed.
	Reload(ctx context.Context) error
	Plan(ctx context.Context, files []config.File) (Plan, error)
}

// planRequest is the body of POST /v1/plan.
type planRequest struct {
	Files []config.File `json:"files"`
}

// Plan is the answer to it, and what "vipd plan -o json" prints.
type Plan struct {
	Changes  []proxier.Change  `json:"changes"`
	Rejected map[lb.Key]string `json:"rejected"` // services that would be quarantined, and why
}

// NewPlan returns the form of a plan that is told to others.
func NewPlan(p reconciler.Planned) Plan {
	plan := Plan{Changes: p.Changes, Rejected: map[lb.Key]string{}}
	if plan.Changes == nil {
		plan.Changes = []proxier.Change{}
	}
	for k, err := range p.Rejected {
		plan.Rejected[k] = err.Error()
	}
	return plan
}

// failure is the body of every answer that is not a success.
type failure struct {
	Error string `json:"error"`
}

// Server answers on the socket.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// Listen makes the socket, in place of one that a former run left behind. One on
// which somebody answers stays: it is that of a vipd in another network namespace.
func Listen(path string, d Daemon, log *slog.Logger) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // others may look in, the socket has a mode of its own
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("admin socket: %s exists and is no socket; remove it or set daemon.admin_socket", path)
		}
		if answers(path) {
			return nil, fmt.Errorf("admin socket: another vipd answers on %s; set daemon.admin_socket to another path", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("admin socket: %w", err)
		}
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil { //nolint:gosec // the group may ask
		return nil, errors.Join(fmt.Errorf("admin socket: %w", err), listener.Close())
	}
	return &Server{listener: listener, http: &http.Server{
		Handler:           routes(d),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, peerUID(c))
		},
	}}, nil
}

// answers reports whether somebody listens on the socket at path.
func answers(path string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// Serve answers until ctx ends, then removes the socket.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.http.Close() })
	defer stop()
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin socket: %w", err)
	}
	return nil
}

func routes(d Daemon) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		s, services := d.Status(r.Context())
		replyStatus(w, s, services)
	})
	mux.HandleFunc("POST /v1/reload", trusted(func(w http.ResponseWriter, r *http.Request) {
		if err := d.Reload(r.Context()); err != nil {
			reply(w, http.StatusUnprocessableEntity, failure{err.Error()})
			return
		}
		reply(w, http.StatusOK, struct{}{})
	}))
	mux.HandleFunc("POST /v1/plan", trusted(func(w http.ResponseWriter, r *http.Request) {
		var req planRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&req); err != nil {
			reply(w, http.StatusBadRequest, failure{"plan: " + err.Error()})
			return
		}
		plan, err := d.Plan(r.Context(), req.Files)
		if err != nil {
			reply(w, http.StatusUnprocessableEntity, failure{err.Error()})
			return
		}
		reply(w, http.StatusOK, plan)
	}))
	return mux
}

// trusted lets root and our own user through.
func trusted(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		uid, known := r.Context().Value(peerKey{}).(int)
		if !known || uid != 0 && uid != os.Getuid() {
			reply(w, http.StatusForbidden, failure{"only root and the user of vipd may do this"})
			return
		}
		next(w, r)
	}
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the peer went away: nobody to tell
}

// replyStatus writes a status service by service: of 50,000 the whole text would be
// greater than all that vipd has in memory.
func replyStatus(w http.ResponseWriter, s reconciler.Status, services iter.Seq[reconciler.ServiceStatus]) {
	s.Services = []reconciler.ServiceStatus{}
	whole, err := json.Marshal(s)
	before, after, found := bytes.Cut(whole, []byte(`"services":[]`)) // inside a string its quotes would be escaped
	if err != nil || !found {
		reply(w, http.StatusInternalServerError, failure{fmt.Sprintf("the status cannot be written: %v", err)})
		return
	}
	w.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriter(w)
	defer func() { _ = out.Flush() }() // the peer went away: nobody to tell
	encoder := json.NewEncoder(out)
	_, err = fmt.Fprintf(out, `%s"services":[`, before)
	comma := ""
	for svc := range services {
		if err == nil {
			_, err = out.WriteString(comma)
		}
		if err == nil {
			err = encoder.Encode(svc)
		}
		if err != nil {
			return
		}
		comma = ","
	}
	_, _ = fmt.Fprintf(out, "]%s\n", after)
}

// peerKey is the context key for the user id of the peer.
type peerKey struct{}

// peerUID returns the user id of the peer, or nil if the kernel does not tell.
func peerUID(c net.Conn) any {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	var uid any
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	if err != nil {
		return nil
	}
	return uid
}

package loss

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
)

// maxRequest bounds a request over TCP, in bytes.
const maxRequest = 4 << 20

// ServerOptions say what a Server answers to.
type ServerOptions struct {
	Name string // one word; it is the Backend of every Answer
	In   In
	TCP  []netip.AddrPort // port 0 takes a free one: see Server.TCP
	UDP  []netip.AddrPort
}

// Server is a backend: it answers every request with its name, the address of
// the client and the request itself.
type Server struct {
	TCP []netip.AddrPort // where it listens
	UDP []netip.AddrPort

	name     string
	requests atomic.Int64
	cancel   context.CancelFunc
	group    sync.WaitGroup

	mu      sync.Mutex
	open    map[io.Closer]bool // listeners and connections
	closed  bool
	clients map[netip.Addr]int
}

// Serve listens and answers until ctx ends or Close is called. When it returns
// without an error every address is ready.
func Serve(ctx context.Context, o ServerOptions) (*Server, error) {
	if o.Name == "" || strings.ContainsAny(o.Name, " \t\n") {
		return nil, fmt.Errorf("%q cannot be the name of a server; use one word", o.Name)
	}
	s := &Server{name: o.Name, open: map[io.Closer]bool{}, clients: map[netip.Addr]int{}}
	ctx, s.cancel = context.WithCancel(ctx)
	s.group.Go(func() {
		<-ctx.Done()
		s.shut()
	})
	if err := o.In.run(func() error { return s.listen(ctx, o) }); err != nil {
		s.Close()
		return nil, fmt.Errorf("server %s: %w", o.Name, err)
	}
	return s, nil
}

// Requests returns how many requests came so far.
func (s *Server) Requests() int64 { return s.requests.Load() }

// Clients returns how many connections and datagrams came from each address. Behind
// a load balancer that masquerades it is the load balancer's.
func (s *Server) Clients() map[netip.Addr]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.clients)
}

func (s *Server) saw(client netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[client.Addr().Unmap()]++
}

// Close resets the connections, frees the addresses and waits until all is over.
func (s *Server) Close() {
	s.cancel()
	s.group.Wait()
}

func (s *Server) listen(ctx context.Context, o ServerOptions) error {
	var config net.ListenConfig
	for _, a := range o.TCP {
		l, err := config.Listen(ctx, "tcp", a.String())
		if err != nil {
			return err
		}
		s.TCP = append(s.TCP, l.Addr().(*net.TCPAddr).AddrPort())
		s.serve(l, func() { s.accept(l) })
	}
	for _, a := range o.UDP {
		c, err := config.ListenPacket(ctx, "udp", a.String())
		if err != nil {
			return err
		}
		conn := c.(*net.UDPConn)
		s.UDP = append(s.UDP, conn.LocalAddr().(*net.UDPAddr).AddrPort())
		s.serve(conn, func() { s.answerDatagrams(conn) })
	}
	return nil
}

// serve runs f, which uses c, in a goroutine of the server, and closes c after.
func (s *Server) serve(c io.Closer, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close()
		return
	}
	s.open[c] = true
	s.group.Go(func() {
		f()
		s.mu.Lock()
		delete(s.open, c)
		s.mu.Unlock()
		_ = c.Close()
	})
}

func (s *Server) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.open {
		_ = c.Close()
	}
}

func (s *Server) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed, or out of file descriptors: then the clients see it
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		s.serve(conn, func() { s.answerStream(conn) })
	}
}

func (s *Server) answerStream(conn net.Conn) {
	client := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	s.saw(client)
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 512), maxRequest)
	var answer []byte
	for lines.Scan() {
		answer = formatAnswer(answer[:0], s.name, client, lines.Bytes())
		s.requests.Add(1)
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

func (s *Server) answerDatagrams(conn *net.UDPConn) {
	buf := make([]byte, maxDatagram)
	var answer []byte
	for {
		n, client, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		s.saw(client)
		token := strings.TrimSuffix(string(buf[:n]), "\n")
		answer = formatAnswer(answer[:0], s.name, client, []byte(token))
		s.requests.Add(1)
		_, _ = conn.WriteToUDPAddrPort(answer, client) // refused: the client sees a timeout
	}
}

package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"

	"golang.org/x/sys/unix"

	"vipd/config"
	"vipd/reconciler"
)

// ErrNotRunning is the error of a Client when no vipd answers on the socket.
var ErrNotRunning = errors.New("vipd is not running here")

// Client asks a running vipd.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a Client for the socket at path. It connects when asked.
func NewClient(path string) *Client {
	return &Client{socket: path, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}}
}

// Status returns what vipd says of itself.
func (c *Client) Status(ctx context.Context) (reconciler.Status, error) {
	var s reconciler.Status
	err := c.do(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// Reload has vipd read its configuration, and returns when that has been served
// or refused.
func (c *Client) Reload(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/v1/reload", struct{}{}, nil)
}

// Plan returns what a configuration would change.
func (c *Client) Plan(ctx context.Context, files []config.File) (Plan, error) {
	var p Plan
	err := c.do(ctx, http.MethodPost, "/v1/plan", planRequest{files}, &p)
	return p, err
}

func (c *Client) do(ctx context.Context, method, path string, body, answer any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://vipd"+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("%w: nobody answers on %s", ErrNotRunning, c.socket)
		}
		return fmt.Errorf("asking vipd on %s: %w", c.socket, err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err = io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("asking vipd on %s: %w", c.socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		var f failure
		if json.Unmarshal(raw, &f) != nil || f.Error == "" {
			f.Error = fmt.Sprintf("vipd answered %s", resp.Status)
		}
		return errors.New(f.Error)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(raw, answer)
}

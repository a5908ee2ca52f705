package config

import (
	"context"

	"github.com/BurntSushi/toml"
)

// AdminSocket returns where the daemon of this file listens, as well as can be
// told: of a file that is wrong otherwise too, since it has a daemon all the same,
// the one that is to refuse it. A file that is no TOML has the default.
func AdminSocket(ctx context.Context, path string) string {
	var said struct {
		Daemon struct {
			AdminSocket string `toml:"admin_socket"`
		} `toml:"daemon"`
	}
	socket := Default().Daemon.AdminSocket
	files, err := Read(ctx, path)
	if err != nil || len(files) == 0 {
		return socket
	}
	if toml.Unmarshal(files[0].Data, &said) == nil && said.Daemon.AdminSocket != "" {
		return said.Daemon.AdminSocket
	}
	return socket
}

package config

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/BurntSushi/toml"
)

// Places are where the daemon of a file listens, and what it leaves behind under a
// name that the file chose.
type Places struct {
	AdminSocket string
	StateDir    string
	Device      string
}

// FindPlaces returns the places of a file as well as can be told: of a file that is
// wrong otherwise too, since it has a daemon all the same, the one that is to refuse
// it, and what that daemon left. A place that the file does not name, or that cannot
// be one, is the default. The error says why a place is only guessed: the file is no
// TOML, cannot be read, or names what can be no place.
func FindPlaces(ctx context.Context, path string) (Places, error) {
	d := Default()
	p := Places{AdminSocket: d.Daemon.AdminSocket, StateDir: d.Daemon.StateDir, Device: d.VIP.Device}
	data, err := mainFile(ctx, path)
	if err != nil {
		return p, err
	}
	var said struct {
		Daemon struct {
			AdminSocket string `toml:"admin_socket"`
			StateDir    string `toml:"state_dir"`
		} `toml:"daemon"`
		VIP struct {
			Device string `toml:"device"`
		} `toml:"vip"`
	}
	if err := toml.Unmarshal(data, &said); err != nil {
		return p, fmt.Errorf("%s: %w", path, err)
	}
	var errs []error
	for _, k := range []struct {
		key, said string
		to        *string
		fits      func(string) bool
	}{
		{"daemon.admin_socket", said.Daemon.AdminSocket, &p.AdminSocket, filepath.IsAbs},
		{"daemon.state_dir", said.Daemon.StateDir, &p.StateDir, filepath.IsAbs},
		{"vip.device", said.VIP.Device, &p.Device, deviceName.MatchString},
	} {
		switch {
		case k.said == "":
		case k.fits(k.said):
			*k.to = k.said
		default:
			errs = append(errs, fmt.Errorf("%s: %s cannot be %q", path, k.key, k.said))
		}
	}
	return p, errors.Join(errs...)
}

// mainFile returns the content of the file at path, whatever is wrong with those
// beside it.
func mainFile(ctx context.Context, path string) ([]byte, error) {
	if files, err := Read(ctx, path); err == nil {
		return files[0].Data, nil
	}
	return readFile(path)
}

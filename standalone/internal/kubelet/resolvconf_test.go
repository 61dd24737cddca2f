package kubelet

import (
	"io/fs"
	"testing"
)

func TestResolvConf(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  string
	}{
		{name: "none", want: ""},
		{
			name:  "ordinary",
			files: map[string]string{systemResolvConf: "search lan\nnameserver 192.0.2.1\n"},
			want:  systemResolvConf,
		},
		{
			name:  "ordinary IPv6",
			files: map[string]string{systemResolvConf: "nameserver 2001:db8::1\n"},
			want:  systemResolvConf,
		},
		{
			name: "systemd-resolved",
			files: map[string]string{
				systemResolvConf:  "# stub\nnameserver 127.0.0.53\noptions edns0\n",
				systemdResolvConf: "nameserver 192.0.2.1\n",
			},
			want: systemdResolvConf,
		},
		{
			name: "loopback first but not only",
			files: map[string]string{
				systemResolvConf:  "nameserver 127.0.0.1\nnameserver 192.0.2.1\n",
				systemdResolvConf: "nameserver 192.0.2.2\n",
			},
			want: systemResolvConf,
		},
		{
			name:  "loopback and nothing behind it",
			files: map[string]string{systemResolvConf: "nameserver ::1\n"},
			want:  systemResolvConf,
		},
		{
			name: "systemd knows none either",
			files: map[string]string{
				systemResolvConf:  "nameserver 127.0.0.53\n",
				systemdResolvConf: "# No DNS servers known.\n",
			},
			want: systemResolvConf,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := resolvConf(func(path string) ([]byte, error) {
				if data, ok := test.files[path]; ok {
					return []byte(data), nil
				}
				return nil, fs.ErrNotExist
			})
			if got != test.want {
				t.Errorf("resolvConf = %q, want %q", got, test.want)
			}
		})
	}
}

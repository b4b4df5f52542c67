# All ways to write it.
echo 'deb [trusted=yes] http://one.example/ trixie main' >/etc/apt/sources.list.d/one.list
echo 'deb [arch=amd64 trusted=yes] http://two.example/ trixie main' >/etc/apt/sources.list.d/two.list
printf 'Types: deb\nURIs: http://three.example/\nSuites: trixie\nTrusted: yes\n' >/etc/apt/sources.list.d/three.sources

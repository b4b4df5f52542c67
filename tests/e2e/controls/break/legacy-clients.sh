# As on Ubuntu: a metapackage brings telnet, and more that must stay.
build() {
    mkdir -p "/tmp/$1/DEBIAN"
    printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n%s\nDescription: x\n' \
        "$1" "$2" >"/tmp/$1/DEBIAN/control"
    dpkg-deb --build "/tmp/$1" "/tmp/$1.deb" >/dev/null
}
build telnet 'Section: net'
build tnftp 'Section: net'
build hdparm 'Section: admin'
build ubuntu-standard 'Section: metapackages
Depends: telnet, hdparm | sdparm
Recommends: tnftp (>= 1)'
dpkg --install /tmp/*.deb >/dev/null
apt-mark auto telnet tnftp hdparm >/dev/null

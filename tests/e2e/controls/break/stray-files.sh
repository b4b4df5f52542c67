: >/opt/open
chmod 0666 /opt/open
mkdir -m 0777 /opt/folder
: >/opt/nobodys
chown 4321:4321 /opt/nobodys
# What a service keeps under a number of the moment is not strayed.
mkdir -p /var/lib/private/service
chown 61234:61234 /var/lib/private/service

# Runs inside the image, at the end of its making.
export DEBIAN_FRONTEND=noninteractive

# One account, without password and without keys until a seed brings one.
useradd --create-home --shell /bin/bash --comment forge --groups adm,sudo,docker forge
passwd --lock --quiet forge
install -d -m 0700 -o forge -g forge /home/forge/.ssh
install -m 0600 -o forge -g forge /dev/null /home/forge/.ssh/authorized_keys

# What must differ between machines is made at their first boot.
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id
ln -s /etc/machine-id /var/lib/dbus/machine-id
rm -f /var/lib/systemd/random-seed /etc/hostname
ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf

# Generators are programs that PID 1 waits for at every boot. These look for what no machine of forge has
# (encrypted disks, hibernation, /etc/rc.local, partitions to mount by their type). cloud-init is there
# for seeds of others: forge-seed starts it, its generator would only ask again.
mkdir -p /etc/systemd/system-generators
for generator in cloud-init-generator systemd-bless-boot-generator systemd-cryptsetup-generator \
    systemd-gpt-auto-generator systemd-hibernate-resume-generator systemd-integritysetup-generator \
    systemd-rc-local-generator systemd-veritysetup-generator; do
    ln -s /dev/null /etc/systemd/system-generators/$generator
done
: >/etc/cloud/cloud-init.disabled

systemctl --quiet enable systemd-networkd.service systemd-resolved.service systemd-timesyncd.service \
    forge-seed.service docker.service docker.socket containerd.service ssh.service
# Timers that wake an idle machine, and work that belongs to machines with a person in front of them.
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer systemd-pstore.service serial-getty@ttyS0.service \
    systemd-repart.service systemd-network-generator.service sys-fs-fuse-connections.mount
# The engine loads the profile of its containers itself; the others that come with the package belong to
# programs that are not here, and compiling them takes an emulated machine 20 s.
systemctl --quiet mask apparmor.service

rm -f /etc/apt/sources.list.d/0000* /etc/apt/apt.conf.d/99mmdebstrap
sed -i '/force-unsafe-io/d' /etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/* /var/cache/ldconfig
mkdir -p /var/log/journal
chgrp systemd-journal /var/log/journal
chmod 2755 /var/log/journal
# /usr is not newer than what was made from it: no hwdb, ldconfig or catalogue updates at first boot.
touch /etc/.updated /var/.updated

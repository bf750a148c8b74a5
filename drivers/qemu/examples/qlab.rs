//! scratch
use std::net::*; use std::time::*; use forge_driver::*; use forge_qemu::*;
#[tokio::main]
async fn main(){
  let a:Vec<String>=std::env::args().collect();
  if a[1]=="__switch" { run_switch(std::path::Path::new(&a[2])).unwrap(); return; }
  let root=std::path::PathBuf::from(&a[1]); let cpu=a.get(2).cloned().filter(|s|!s.is_empty()); let machine=a.get(3).cloned().unwrap_or("q35".into());
  let home=DriverHome{dir:root.join("drivers/qemu"),store:root.clone(),runtime:root.join("run")};
  let config=Config{accel:AccelChoice::Tcg,cpu_model:cpu,machine,disk_cache:DiskCache::Unsafe,..Config::default()};
  let d=QemuDriver::open(config.clone(),home.clone()).unwrap();
  let claim=Claim::random(); let k=std::path::PathBuf::from("/tmp/lab/image");
  let ip=IpAddr::V4(Ipv4Addr::new(127,141,claim.bytes()[1],claim.bytes()[2].clamp(1,254)));
  let id=std::fs::read_to_string(k.join("id.pub")).unwrap();
  let macs=(Mac::of(claim,0),Mac::of(claim,1));
  let net=Network{id:uuid::Uuid::new_v4(),cidr:config.network_cidr,owner:uuid::Uuid::new_v4()};
  let key:String=std::fs::read_to_string(k.join("hk")).unwrap().lines().map(|l|format!("    {l}\n")).collect();
  let ud=format!("#cloud-config\n# forge-seed 1\nhostname: n0\nusers:\n  - name: forge\n    gecos: forge\n    shell: /bin/bash\n    lock_passwd: true\n    groups: [sudo, docker]\n    sudo: ALL=(ALL) NOPASSWD:ALL\n    ssh_authorized_keys:\n      - {}\ndisable_root: true\nssh_pwauth: false\nssh_deletekeys: true\nssh_keys:\n  ed25519_private: |\n{key}  ed25519_public: {}\nwrite_files:\n  - path: /etc/cloud/cloud-init.disabled\n    content: \"\"\n",id.trim(),std::fs::read_to_string(k.join("hk.pub")).unwrap().trim());
  let spec=Spec{claim,name:"n0".into(),image:BaseImage{disk:k.join("disk.qcow2"),kernel:Some(KernelFiles{kernel:k.join("vmlinuz"),initrd:k.join("initrd.img"),cmdline:"root=LABEL=forge-root rw console=ttyS0 quiet".into()}),size:20<<30},
    seed:Seed{user_data:ud,meta_data:"instance-id: i0\nlocal-hostname: n0\n".into(),network_config:format!("version: 2\nethernets:\n  forge0:\n    match:\n      macaddress: \"{}\"\n    dhcp4: true\n  forge1:\n    match:\n      macaddress: \"{}\"\n    addresses:\n      - 10.133.7.11/24\n",macs.0,macs.1)},
    nic:Some(Nic{network:net.clone(),address:Ipv4Addr::new(10,133,7,11),mac:macs.1}),outer_mac:macs.0,
    forwards:vec![Forward{guest:22,host:SocketAddr::new(ip,2222)},Forward{guest:2376,host:SocketAddr::new(ip,2376)}]};
  let t=Instant::now(); d.check(std::slice::from_ref(&spec)).await.unwrap(); eprintln!("check {:?}",t.elapsed());
  let t=Instant::now(); d.ensure_shared(&net).await.unwrap(); eprintln!("shared {:?}",t.elapsed());
  let t=Instant::now(); let i=d.create(&spec).await.unwrap(); eprintln!("create {:?} {:?}",t.elapsed(),i.hardware);
  let wait=|what:&'static str|{let addr=SocketAddr::new(ip,2222);let pidf=home.dir.join(claim.to_string()).join("vm.pid"); async move{let t=Instant::now();loop{use std::io::Read;
     if let Ok(mut s)=TcpStream::connect_timeout(&addr,Duration::from_secs(1)){s.set_read_timeout(Some(Duration::from_secs(1))).unwrap();let mut b=[0u8;3];if s.read_exact(&mut b).is_ok()&&&b==b"SSH"{break}}
     if t.elapsed()>Duration::from_secs(240){eprintln!("NOT UP");break}
     tokio::time::sleep(Duration::from_millis(200)).await;}
     let pid=std::fs::read_to_string(pidf).unwrap();let st=std::fs::read_to_string(format!("/proc/{}/stat",pid.trim())).unwrap();let f:Vec<&str>=st.rsplit(')').next().unwrap().split_whitespace().collect();
     eprintln!("{what}: ssh wall {:.1?} cpu {:.1}",t.elapsed(),(f[11].parse::<f64>().unwrap()+f[12].parse::<f64>().unwrap())/100.);}};
  wait("first").await;
  if a.get(4).is_some(){
    println!("{}",std::process::Command::new("ssh").args(["-q","-i","/tmp/lab/image/id","-p","2222","-o","UserKnownHostsFile=/dev/null","-o","StrictHostKeyChecking=no",&format!("forge@{ip}"),"ip -br a; uname -r; lsblk; sudo blkid; sudo dmesg | grep -iE 'mitigat|spectre|x86/fpu' "]).output().map(|o|String::from_utf8_lossy(&o.stdout).into_owned()).unwrap());
    let t=Instant::now(); d.set_power(claim,Power::Shutdown).await.unwrap(); while d.observe(&[claim]).await.unwrap()[0].state!=State::Stopped {tokio::time::sleep(Duration::from_millis(100)).await;} eprintln!("shutdown {:?}",t.elapsed());
    d.set_power(claim,Power::On).await.unwrap(); wait("bootloader").await;
    d.set_power(claim,Power::Kill).await.unwrap();
    // again with the kernel
    let p=home.dir.join(claim.to_string()).join("vm.json"); let s=std::fs::read_to_string(&p).unwrap().replace("\"booted\": true","\"booted\": false"); std::fs::write(&p,s).unwrap();
    d.create(&spec).await.unwrap(); wait("kernel again").await;
  }
  let t=Instant::now(); d.destroy(claim).await.unwrap(); d.release_shared(&net).await.unwrap(); eprintln!("destroy {:?}",t.elapsed());
}

// The configuration files of a node's programs. Pure.
import { type ClusterNode, clusterDns, clusterDomain, images, podCidr, podCidrs } from './layout.ts'

/** Where a node finds what its configuration names, as absolute paths. */
export interface NodePaths {
  /** The node's own folder. */
  folder: string
  /** Root of the unpacked Debian packages. */
  debian: string
  caFile: string
  proxyKubeconfig: string
}

/** File name -> content, all for the node's folder. */
export function nodeFiles(node: ClusterNode, cgroup: string, paths: NodePaths): Record<string, string> {
  const json = (value: object) => `${JSON.stringify(value, undefined, 2)}\n` // JSON is YAML
  return {
    'containerd.toml': containerd(paths),
    'kubelet.yaml': json(kubelet(cgroup, paths)),
    'kube-proxy.yaml': json(kubeProxy(node, paths)),
    'cni/10-edgemesh.conflist': json(cni(node, paths)),
    // For pods of dnsPolicy Default; nobody answers there.
    'resolv.conf': 'nameserver 127.0.0.1\n',
  }
}

/** Without CAP_SYS_RESOURCE nobody may lower an oom_score_adj: restrict_oom_score_adj keeps runc from trying. */
function containerd({ folder, debian }: NodePaths): string {
  const cri = 'io.containerd.grpc.v1.cri'
  return `version = 2
root = "${folder}/containerd"
state = "/run/containerd"
disabled_plugins = [${['aufs', 'btrfs', 'devmapper', 'zfs'].map((name) => `"io.containerd.snapshotter.v1.${name}"`).join(', ')}]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."${cri}"]
  sandbox_image = "${images.pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true

[plugins."${cri}".cni]
  bin_dir = "${debian}/usr/lib/cni"
  conf_dir = "${folder}/cni"

[plugins."${cri}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."${cri}".containerd.runtimes.runc.options]
  BinaryName = "${debian}/usr/sbin/runc"
  SystemdCgroup = false
`
}

function kubelet(cgroup: string, { folder, caFile }: NodePaths): object {
  return {
    apiVersion: 'kubelet.config.k8s.io/v1beta1',
    kind: 'KubeletConfiguration',
    authentication: {
      anonymous: { enabled: false },
      webhook: { enabled: true },
      x509: { clientCAFile: caFile },
    },
    authorization: { mode: 'Webhook' },
    cgroupDriver: 'cgroupfs',
    cgroupRoot: `/${cgroup}`,
    clusterDNS: [clusterDns],
    clusterDomain,
    containerRuntimeEndpoint: 'unix:///run/containerd/containerd.sock',
    failCgroupV1: false,
    failSwapOn: false,
    makeIPTablesUtilChains: false,
    nodeStatusUpdateFrequency: '4s',
    resolvConf: `${folder}/resolv.conf`,
    volumePluginDir: `${folder}/volume-plugins`,
    // The disk and the memory are the whole machine's: a full one is no reason to evict what a test has started.
    evictionHard: {
      'memory.available': '100Mi',
      'nodefs.available': '1%',
      'nodefs.inodesFree': '0%',
      'imagefs.available': '1%',
      'imagefs.inodesFree': '0%',
    },
    // Nor to remove images, which nobody could pull again.
    imageGCHighThresholdPercent: 100,
    imageGCLowThresholdPercent: 99,
  }
}

function kubeProxy(node: ClusterNode, { proxyKubeconfig }: NodePaths): object {
  return {
    apiVersion: 'kubeproxy.config.k8s.io/v1alpha1',
    kind: 'KubeProxyConfiguration',
    mode: 'iptables',
    clientConnection: { kubeconfig: proxyKubeconfig },
    clusterCIDR: podCidr,
    // The table of connections is the machine's: zeros leave it alone.
    conntrack: { maxPerCore: 0, min: 0, tcpCloseWaitTimeout: '0s', tcpEstablishedTimeout: '0s' },
    hostnameOverride: node,
    iptables: { localhostNodePorts: false, minSyncPeriod: '100ms' },
  }
}

function cni(node: ClusterNode, { folder }: NodePaths): object {
  return {
    cniVersion: '1.0.0',
    name: 'edgemesh',
    plugins: [
      {
        type: 'bridge',
        bridge: 'cni0',
        isGateway: true,
        ipMasq: true,
        hairpinMode: true,
        ipam: {
          type: 'host-local',
          dataDir: `${folder}/ipam`,
          ranges: [[{ subnet: podCidrs[node] }]],
          routes: [{ dst: '0.0.0.0/0' }],
        },
      },
      { type: 'portmap', capabilities: { portMappings: true } },
    ],
  }
}

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { mustRun } from '../lab/shell.ts'
import type { Cluster } from './cluster.ts'
import { images, nodes } from './layout.ts'

const root = join(import.meta.dirname, '..', '..')
export const publicPort = 20_004

/** What one connection's access line says. */
export interface AccessLine {
  /** ISO 8601; of its end. */
  time: string
  direction: string
  /** `address:port` of the pod that was chosen. */
  endpoint: string
  destination: string
  route: string
  closeReason: string
}

/** The project's own image, known to both nodes; and busybox by the name that the example uses. */
export async function loadImages(cluster: Cluster): Promise<void> {
  const archive = join(cluster.folder, 'edgemesh.tar')
  const argv = [process.execPath, 'manifests/image/main.ts', '--output', archive]
  await mustRun(argv, { cwd: root, timeoutMs: 300_000 })
  await cluster.loadImage(archive)
  rmSync(archive)
  const tag = ['ctr', '-n', 'k8s.io', 'images', 'tag', images.busybox, 'docker.io/library/busybox:1.36']
  for (const node of nodes) await cluster.onNode(node, tag)
}

/** What a cloud does for a Service of type LoadBalancer: forwards from a public address, and says so in its status. */
export async function startLoadBalancer(cluster: Cluster): Promise<ChildProcess> {
  const service = ['-n', 'edgemesh-system', 'get', 'service', 'edgemesh-server']
  const nodePort = await cluster.mustKubectl(...service, '-o', 'jsonpath={.spec.ports[0].nodePort}')
  const address = cluster.nodeIP('cloud')
  const [program = '', ...args] = cluster.commandIn('cloud', [
    process.execPath,
    join(import.meta.dirname, 'load-balancer.ts'),
    ...[address, String(publicPort), address, nodePort],
  ])
  const forwarder = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(forwarder.stdout, 'data')
  // Proxy: kube-proxy must not take the address as a short cut to pods, which an edge node cannot reach.
  const status = { loadBalancer: { ingress: [{ ip: address, ipMode: 'Proxy' }] } }
  await cluster.mustKubectl(
    ...['-n', 'edgemesh-system', 'patch', 'service', 'edgemesh-server', '--subresource=status'],
    ...['-p', JSON.stringify({ status })],
  )
  return forwarder
}

/** The name of the one running pod with this label `app`. */
export async function podOf(cluster: Cluster, app: string, namespace = 'default'): Promise<string> {
  const args = ['-n', namespace, 'get', 'pods', '-l', `app=${app}`, '--field-selector=status.phase=Running']
  const names = await cluster.mustKubectl(...args, '-o', 'jsonpath={.items[*].metadata.name}')
  return names.split(' ').at(-1) ?? ''
}

/** Sends a line from a pod by the pod's own netcat, and resolves with what came back. */
export async function say(cluster: Cluster, pod: string, host: string, line: string): Promise<string> {
  const script = `(echo ${line}; sleep 1) | timeout 8 nc -w 5 ${host} 2701`
  return (await cluster.kubectl('exec', pod, '-c', 'client', '--', 'sh', '-c', script)).stdout.trim()
}

export async function accessLines(cluster: Cluster, pod: string): Promise<AccessLine[]> {
  const text = await cluster.mustKubectl('logs', pod, '-c', 'edgemesh-sidecar')
  return text
    .split('\n')
    .filter((line) => line.includes('"msg":"connection"'))
    .map((line) => JSON.parse(line) as AccessLine)
}

/** A pod that sleeps and can be talked from, or that echoes on 2701. */
export function simplePod(name: string, node: 'cloud' | 'edge', more: object = {}, echo = false): object {
  const command = echo ? ['nc', '-ll', '-p', '2701', '-e', 'cat'] : ['sleep', 'infinity']
  const ports = echo ? [{ containerPort: 2701 }] : []
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace: 'default', labels: { app: name, ...more } },
    spec: {
      nodeName: node,
      terminationGracePeriodSeconds: 1,
      containers: [{ name: 'client', image: 'busybox:1.36', command, ports }],
    },
  }
}

export function simpleService(name: string): object {
  return {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: { name, namespace: 'default' },
    spec: { selector: { app: name }, ports: [{ name: 'tcp', port: 2701 }] },
  }
}

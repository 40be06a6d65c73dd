import type { Duplex } from 'node:stream'
import { createLogger } from '#shared/log.ts'
import type { ServerMessage } from '#shared/wire.ts'
import { ControlChannel } from '../../../sidecar/control/channel.ts'
import { Identity } from '../../../sidecar/control/identity.ts'
import { RelayClient } from '../../../sidecar/routing/relayed.ts'
import { SidecarMetrics } from '../../../sidecar/sidecar-metrics.ts'

export interface MeshPod {
  uid: string
  tokenFile: string
}

export interface MeshOptions {
  server: { host: string; port: number }
  /** More replicas of it. */
  replicas?: readonly { host: string; port: number }[]
  trustBundleFile: string
  subscriptions?: readonly string[]
  onMessage?: (message: ServerMessage) => void
  /** Takes the connections that peers make to us through the relay. */
  serve?: (stream: Duplex) => void
}

const log = createLogger('bench', 'silent')
const metrics = new SidecarMetrics()
const trustDomain = 'cluster.local'

/** A sidecar's own control channel and relay client, without the rest of it: many fit into one process. */
export async function openMeshClient(
  pod: MeshPod,
  { server, replicas = [], trustBundleFile, subscriptions = [], onMessage, serve }: MeshOptions,
): Promise<{ channel: ControlChannel; relay: RelayClient }> {
  const identity = await Identity.open({ podUid: pod.uid, trustDomain, folder: undefined }, log)
  const channel = new ControlChannel({
    config: {
      servers: [server, ...replicas],
      tokenFile: pod.tokenFile,
      trustBundle: undefined,
      trustBundleFile,
      trustDomain,
      podUid: pod.uid,
      podIPs: ['10.0.0.1'],
      hostIP: undefined,
      node: undefined,
    },
    identity,
    hello: () => ({ subscriptions: [...subscriptions] }),
    onMessage: (message) => {
      onMessage?.(message)
      if (message.type === 'ticket' || message.type === 'failed') relay.onAnswer(message)
      else if (message.type === 'incoming' && serve !== undefined)
        void relay.join(message.ticket, message.from ?? '', serve)
    },
    onLost: (welcomes) => relay.onLost(welcomes),
    onMoved: () => undefined,
    metrics,
    log,
  })
  const relay = new RelayClient(channel, metrics, log)
  channel.start()
  return { channel, relay }
}

/** How many attempts of all clients of this process to reach a server were in vain. */
export async function refusedConnects(): Promise<number> {
  const { values } = await metrics.controlConnects.get()
  return values.reduce((sum, v) => sum + (v.labels.outcome === 'welcome' ? 0 : v.value), 0)
}

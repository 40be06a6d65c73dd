import { listenAdmin } from '#shared/admin.ts'
import { sentenceOf } from '#shared/errors.ts'
import { Lifecycle } from '#shared/lifecycle.ts'
import { createLogger, type Logger } from '#shared/log.ts'
import { joinOptions } from '#shared/pump/join.ts'
import { Pump } from '#shared/pump/pump.ts'
import type { Backend } from './backend/backend.ts'
import { openFolder } from './backend/folder.ts'
import { type ServerConfig, serverCommand } from './config.ts'
import { Hub } from './hub.ts'
import { Relay, relayLimits } from './relay.ts'
import { Server } from './server.ts'
import { ServerMetrics } from './server-metrics.ts'

/** Relayed pairs in the pump at once. */
const maxPumped = 2_000

async function run(config: ServerConfig): Promise<void> {
  const { trustDomain, replica, leafLifetime: leafLifetimeMs, maxLeafLifetime } = config
  const log = createLogger('server', config.logLevel)
  const lifecycle = new Lifecycle(log)
  const metrics = new ServerMetrics()
  let listening = false
  const stop = async (why: string) => {
    log.info({ why }, 'stopping')
    listening = false
    await lifecycle.stop()
    process.exit(0)
  }
  process.once('SIGTERM', () => void stop('SIGTERM'))
  process.once('SIGINT', () => void stop('SIGINT'))
  const backend = await openBackend(config, metrics, log)
  const { authority, verifier, source, directory } = backend
  lifecycle.add('backend', () => backend.close())
  const pump = new Pump(log, maxPumped)
  lifecycle.add('pump', () => pump.close())
  metrics.gauge('pump_connections', 'Relayed connections in the pump.', () => pump.use.connections)
  metrics.gauge('pump_descriptors', 'File descriptors of the pump.', () => pump.use.descriptors)
  const bulk = () => joinOptions(pump, config.fastPath)
  const relay = new Relay(replica, metrics, log, bulk, relayLimits, directory)
  const hub = new Hub({
    trustDomain,
    replica,
    leafLifetimeMs,
    maxLeafLifetimeMs: maxLeafLifetime,
    source,
    verifier,
    authority,
    relay,
    metrics,
    log,
    directory,
    credentials: () => server.credentials,
  })
  const missing = () => (listening ? [] : ['listener'])
  const admin = await listenAdmin({ port: config.adminPort, metrics, missing })
  lifecycle.add('admin', () => void admin.server.close())
  const server = new Server({ port: config.port, hub, relay, authority, metrics, log })
  lifecycle.add('listener', () => server.close(config.drain), config.drain + 2_000)
  const port = await server.listen()
  backend.announce?.(() => hub.present())
  listening = true
  log.info({ port, adminPort: admin.port, services: source.state.services.size }, 'listening')

  process.on('uncaughtException', (error) => {
    log.error({ error: sentenceOf(error), stack: error.stack }, 'a defect: the server restarts')
    process.exit(70)
  })
}

/** Each loads only what it needs: Kubernetes' client is large. */
async function openBackend(config: ServerConfig, metrics: ServerMetrics, log: Logger): Promise<Backend> {
  const { backend } = config
  if (backend.kind === 'folder') return openFolder(backend, config, log)
  const { openKubernetes } = await import('./backend/kubernetes.ts')
  return openKubernetes({ ...config, ...backend, metrics, log })
}

try {
  await serverCommand(run).parseAsync()
} catch (error) {
  console.error(sentenceOf(error))
  process.exit(1)
}

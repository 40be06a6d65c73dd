import { Command, Option } from 'commander'
import { listenAdmin } from '#shared/admin.ts'
import { sentenceOf } from '#shared/errors.ts'
import { KubernetesClient } from '#shared/kubernetes/client.ts'
import { Lifecycle, pause } from '#shared/lifecycle.ts'
import { createLogger, type LogLevel, logLevels } from '#shared/log.ts'
import { version } from '#shared/version.ts'
import { Events } from './events.ts'
import { MeshSource } from './mesh-source.ts'
import { ServingCertificate } from './serving-certificate.ts'
import { InjectorMetrics, Webhook } from './webhook.ts'

interface Options {
  port: string
  adminPort: string
  namespace: string
  service: string
  webhookConfiguration: string
  image: string
  caLifetime: string
  checkEvery: string
  kubeconfig?: string
  logLevel: LogLevel
}

/** Endpoints need a moment to learn that we are going; requests that come meanwhile are answered. */
const lameDuckMs = 3_000

async function run(options: Options): Promise<void> {
  const { namespace, service, webhookConfiguration, image } = options
  const log = createLogger('injector', options.logLevel)
  const lifecycle = new Lifecycle(log)
  const metrics = new InjectorMetrics()
  const client = KubernetesClient.load({ file: options.kubeconfig })
  const source = new MeshSource({ client, namespace, image, log })
  const events = new Events(client, log)
  const webhook = new Webhook({ port: Number(options.port), source, events, metrics, log })
  let [certified, stopping] = [false, false]
  const missing = () => [
    ...(certified ? [] : ['certificate']),
    ...(source.known ? [] : ['mesh configuration from the server']),
    ...(stopping ? ['stopping'] : []),
  ]
  const admin = await listenAdmin({ port: Number(options.adminPort), metrics, missing })
  lifecycle.add('admin', () => void admin.server.close())
  process.once('SIGTERM', () => void stop('SIGTERM'))
  process.once('SIGINT', () => void stop('SIGINT'))
  const stop = async (why: string) => {
    log.info({ why }, 'stopping')
    stopping = true
    if (why === 'SIGTERM') await pause(lameDuckMs).catch(() => undefined)
    await lifecycle.stop()
    process.exit(0)
  }
  await source.start()
  lifecycle.add('mesh', () => source.close())
  const serving = new ServingCertificate({
    ...{ client, namespace, service, webhookConfiguration, log },
    caLifetimeMs: Number(options.caLifetime) * 1_000,
    everyMs: Number(options.checkEvery) * 1_000,
    onCertificate: (tls) => {
      webhook.setCertificate(tls)
      certified = true
    },
  })
  await serving.start()
  lifecycle.add('certificate', () => serving.close())
  const port = await webhook.listen()
  lifecycle.add('webhook', () => webhook.close(), 10_000)
  log.info({ port, adminPort: admin.port, version, image }, 'listening')
}

const option = (flags: string, text: string) => {
  const made = new Option(flags, text)
  return made.env(`EDGEMESH_${made.name().toUpperCase().replaceAll('-', '_')}`)
}

try {
  await new Command('edgemesh-injector')
    .description('EdgeMesh injector: the mutating webhook that puts init and sidecar into pods.')
    .addOption(option('--port <number>', 'webhook, HTTPS').default('8443'))
    .addOption(option('--admin-port <number>', 'health and metrics').default('8080'))
    .addOption(option('--namespace <name>', 'of the mesh itself').default('edgemesh-system'))
    .addOption(option('--service <name>', 'in front of the webhook').default('edgemesh-injector'))
    .addOption(option('--webhook-configuration <name>', 'gets the caBundle').default('edgemesh-injector'))
    .addOption(
      option('--image <name>', 'of init and sidecar').default(`edgemesh/edgemesh-sidecar:${version}`),
    )
    .addOption(option('--ca-lifetime <seconds>', 'of the root of our certificates').default('31536000'))
    .addOption(
      option('--check-every <seconds>', 'how often to look after certificate and caBundle').default('30'),
    )
    .addOption(option('--kubeconfig <file>', "by default the pod's service account"))
    .addOption(option('--log-level <level>', 'how much to say').choices(logLevels).default('info'))
    .showHelpAfterError('(see --help)')
    .allowExcessArguments(false)
    .action(run)
    .parseAsync()
} catch (error) {
  console.error(sentenceOf(error))
  process.exit(1)
}

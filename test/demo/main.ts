import { Command } from 'commander'
import { sentenceOf } from '#shared/errors.ts'
import { hostRules } from '../lab/host.ts'
import { Lab } from '../lab/lab.ts'
import { serverAddress } from '../lab/topology.ts'
import { type Step, tell } from './story.ts'

const colours = process.stdout.isTTY && process.env.NO_COLOR === undefined
const paint = (code: string) => (text: string) => (colours ? `\x1b[${code}m${text}\x1b[0m` : text)
const bold = paint('1')
const dim = paint('2')
const red = paint('31')
const green = paint('32')
const yellow = paint('33')
const cyan = paint('36')

function printMap(lab: Lab): void {
  const ip = (pod: string) => lab.pod(pod).ips[0]
  console.log(`
  ${dim('cloud')}      mkmaster1 ${dim(`${serverAddress}  server and relay, public`)}
             mkworker3 ${dim('behind it')}      pod ${bold('tcp-echo-cloud')} ${dim(ip('tcp-echo-cloud'))}
  ${dim('internet ────────────────────────────────────────────────────')}
  ${dim('edge site')}  mkedge2   ${dim('behind a NAT')}   pod ${bold('tcp-echo-edge')}  ${dim(ip('tcp-echo-edge'))}
             mkedge3   ${dim('behind a NAT')}   pod ${bold('client')}         ${dim(ip('client'))}
`)
}

function printStep(step: Step, number: number): void {
  const way = step.via.join(' ──▶ ')
  const row = (what: string, text: string, note = '') =>
    console.log(`     ${dim(what.padEnd(11))} ${text}${note && `  ${dim(note)}`}`)
  console.log(`  ${bold(String(number))}  client on ${step.from}  telnets  ${bold(`${step.name}:2701`)}`)
  if (step.name !== step.clusterIP)
    row('resolved', `${step.name} = ${step.clusterIP}`, `by its sidecar, ${step.dnsMs} ms`)
  row('redirected', `${step.clusterIP}:2701 to 127.0.0.1:40001`, 'chain EDGE-MESH-TCP, in the pod')
  row('recovered', step.recovered, 'getsockopt(SO_ORIGINAL_DST)')
  row('endpoint', `${step.endpoint} on ${step.to}`)
  row(
    'route',
    `${(step.route === 'direct' ? green : yellow)(step.route)}  ${cyan(way)}`,
    `connected after ${step.connectMs} ms, first byte after ${step.firstByteMs} ms`,
  )
  row('telnet', step.greeting)
  row('', step.echoed ? `${green('✔')} the line that was sent came back` : `${red('✘')} nothing came back`)
  console.log()
}

async function demo({ json }: { json: boolean }): Promise<void> {
  const say = (text: string) => {
    if (!json) console.log(text)
  }
  say(
    `\n  ${bold('EdgeMesh Sidecar')}: a telnet across two sites, real kernels and real NATs in network namespaces`,
  )
  const before = await hostRules()
  const name = `demo-${process.pid}`
  const interrupted = () => {
    process.stderr.write('\n  taking the lab down ...\n')
    Lab.down(name).finally(() => process.exit(130))
  }
  process.once('SIGINT', interrupted)
  process.once('SIGTERM', interrupted)
  const steps: Step[] = []
  try {
    const lab = await Lab.up({ name, onProgress: (step) => say(dim(`  … ${step}`)) })
    if (!json) printMap(lab)
    for (const service of ['tcp-echo-edge', 'tcp-echo-cloud']) {
      for (const by of ['name', 'clusterIP'] as const) {
        const step = await tell(lab, service, by)
        steps.push(step)
        if (!json) printStep(step, steps.length)
      }
    }
  } finally {
    await Lab.down(name)
  }
  const hostRulesUnchanged = (await hostRules()) === before
  say(
    hostRulesUnchanged
      ? `  ${green('✔')} the host's own iptables are byte for byte what they were, and nothing of the lab is left\n`
      : `  ${red('✘')} the host's own iptables have changed\n`,
  )
  if (json) console.log(JSON.stringify({ steps, hostRulesUnchanged }))
  process.exitCode = hostRulesUnchanged && steps.every((s) => s.echoed) ? 0 : 1
}

const program = new Command('npm run demo --')
  .description(
    'Shows a telnet from a pod at the edge to services at the edge and in the cloud, by name and clusterIP.',
  )
  .option('--json', 'prints one JSON object instead', false)
  .action(demo)

try {
  await program.parseAsync()
} catch (error) {
  console.error(`\n  ${red('✘')} ${sentenceOf(error)}`)
  process.exit(1)
}

import { Command } from 'commander'
import { sentenceOf } from '#shared/errors.ts'
import { hostRules } from '../lab/host.ts'
import { takeDownOnInterrupt } from '../lab/interrupts.ts'
import { Lab } from '../lab/lab.ts'
import { serverAddress } from '../lab/topology.ts'
import { measureAll, type NatPair, type NatResult, parsePairs, sitesOf } from './nat.ts'
import { natTable } from './nat-table.ts'
import { bold, cyan, dim, green, paintRoute, red } from './paint.ts'
import { type Step, tell } from './story.ts'

function mapOf(lab: Lab): string {
  const ip = (pod: string) => lab.pod(pod).ips[0]
  return `
  ${dim('cloud')}      mkmaster1 ${dim(`${serverAddress}  server and relay, public`)}
             mkworker3 ${dim('behind it')}      pod ${bold('tcp-echo-cloud')} ${dim(ip('tcp-echo-cloud'))}
  ${dim('internet ────────────────────────────────────────────────────')}
  ${dim('edge site')}  mkedge2   ${dim('behind a NAT')}   pod ${bold('tcp-echo-edge')}  ${dim(ip('tcp-echo-edge'))}
             mkedge3   ${dim('behind a NAT')}   pod ${bold('client')}         ${dim(ip('client'))}
`
}

function describeStep(step: Step, number: number): string {
  const way = step.via.join(' ──▶ ')
  const row = (what: string, text: string, note = '') =>
    `     ${dim(what.padEnd(11))} ${text}${note && `  ${dim(note)}`}`
  const resolved =
    step.name === step.clusterIP
      ? []
      : [row('resolved', `${step.name} = ${step.clusterIP}`, `by its sidecar, ${step.dnsMs} ms`)]
  return [
    `  ${bold(String(number))}  client on ${step.from}  telnets  ${bold(`${step.name}:2701`)}`,
    ...resolved,
    row('redirected', `${step.clusterIP}:2701 to port 40001 on loopback`, 'chain EDGE-MESH-TCP, in the pod'),
    row('recovered', step.recovered, 'getsockopt(SO_ORIGINAL_DST)'),
    row('endpoint', `${step.endpoint} on ${step.to}`),
    row(
      'route',
      `${paintRoute(step.route)}  ${cyan(way)}`,
      `connected after ${step.connectMs} ms, first byte after ${step.firstByteMs} ms`,
    ),
    row('telnet', step.greeting),
    row('', step.echoed ? `${green('✔')} the line that was sent came back` : `${red('✘')} nothing came back`),
    '',
  ].join('\n')
}

interface Shown {
  steps: Step[]
  nat: NatResult[]
}

/** The story of the standard lab: four telnets. */
async function tellStory(name: string, say: (text: string) => void): Promise<Step[]> {
  const steps: Step[] = []
  const lab = await Lab.up({ name, onProgress: (step) => say(dim(`  … ${step}`)) })
  say(mapOf(lab))
  for (const service of ['tcp-echo-edge', 'tcp-echo-cloud']) {
    for (const by of ['name', 'clusterIP'] as const) {
      const step = await tell(lab, service, by)
      steps.push(step)
      say(describeStep(step, steps.length))
    }
  }
  return steps
}

/** New connections between sites behind NATs, until they go the best way that there is. */
async function tryNats(
  name: string,
  pairs: readonly NatPair[],
  say: (text: string) => void,
): Promise<NatResult[]> {
  say(
    `  ${bold('Two sites, each behind a NAT')} on top of the node's own; the route that new connections end up with\n`,
  )
  const onProgress = (step: string) => say(dim(`  … ${step}`))
  const lab = await Lab.up({ name, natSites: sitesOf(pairs), onProgress })
  const results = await measureAll(lab, pairs, onProgress)
  say(`\n${natTable(results)}\n`)
  return results
}

async function show(name: string, pairs: readonly NatPair[], say: (text: string) => void): Promise<Shown> {
  const labs = [name, `${name}-nat`]
  const takeDown = () => Promise.all(labs.map((lab) => Lab.down(lab)))
  using _interrupts = takeDownOnInterrupt(takeDown)
  try {
    const steps = await tellStory(name, say)
    if (pairs.length === 0) return { steps, nat: [] }
    await Lab.down(name)
    return { steps, nat: await tryNats(`${name}-nat`, pairs, say) }
  } finally {
    await takeDown()
  }
}

async function demo({ json, nat: natOption }: { json: boolean; nat?: string }): Promise<void> {
  const pairs = natOption === undefined ? [] : parsePairs(natOption)
  const say = (text: string) => {
    if (!json) console.log(text)
  }
  say(
    `\n  ${bold('EdgeMesh Sidecar')}: a telnet across two sites, real kernels and real NATs in network namespaces`,
  )
  const before = await hostRules()
  const { steps, nat } = await show(`demo-${process.pid}`, pairs, say)
  const hostRulesUnchanged = (await hostRules()) === before
  say(
    hostRulesUnchanged
      ? `  ${green('✔')} the host's own iptables are byte for byte what they were, and nothing of the lab is left\n`
      : `  ${red('✘')} the host's own iptables have changed\n`,
  )
  if (json)
    console.log(JSON.stringify({ steps, hostRulesUnchanged, ...(natOption === undefined ? {} : { nat }) }))
  process.exitCode = hostRulesUnchanged && [...steps, ...nat].every((s) => s.echoed) ? 0 : 1
}

const program = new Command('npm run demo --')
  .description(
    'Shows a telnet from a pod at the edge to services at the edge and in the cloud, by name and clusterIP.',
  )
  .option('--nat <kinds>', 'then tries sites behind NATs: all, or two kinds as in full,symmetric')
  .option('--json', 'prints one JSON object instead', false)
  .action(demo)

try {
  await program.parseAsync()
} catch (error) {
  console.error(`\n  ${red('✘')} ${sentenceOf(error)}`)
  process.exit(1)
}

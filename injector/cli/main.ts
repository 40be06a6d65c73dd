#!/usr/bin/env node
import { Command, Option } from 'commander'
import { sentenceOf } from '#shared/errors.ts'
import { version } from '#shared/version.ts'
import { injectText, uninjectText } from '../offline.ts'
import { check } from './check.ts'
import { transformFiles } from './files.ts'
import { table } from './findings.ts'
import { type ClusterOptions, clientOf, type MeshOptions, meshSettings } from './mesh-options.ts'

const program = new Command('edgemesh')
  .description('EdgeMesh: puts workloads into the mesh, and checks that it works.')
  .version(version)
  .showHelpAfterError('(see --help)')

const cluster = (command: Command) =>
  command
    .option('--kubeconfig <file>', 'by default $KUBECONFIG or ~/.kube/config')
    .option('--context <name>', 'of the kubeconfig')
    .option('--mesh-namespace <name>', 'where the mesh itself runs', 'edgemesh-system')

cluster(program.command('inject'))
  .description('puts init and sidecar into the workloads of files, folders or standard input (-)')
  .argument('<paths...>', 'YAML or JSON; all else in it stays byte for byte')
  .option('--in-place', 'writes the files instead of standard output', false)
  .option('--mesh-config <file>', 'the ConfigMap edgemesh-mesh in a file: no cluster is asked')
  .option('--image <name>', 'of init and sidecar', `edgemesh/edgemesh-sidecar:${version}`)
  .addOption(new Option('--no-native-sidecar', 'for clusters before 1.29'))
  .action(async (paths: string[], options: MeshOptions & { inPlace: boolean }) => {
    const mesh = await meshSettings(options)
    await transformFiles(paths, options.inPlace, (text, name) => injectText(text, name, mesh))
  })

program
  .command('uninject')
  .description('takes init and sidecar out again')
  .argument('<paths...>', 'files, folders or standard input (-)')
  .option('--in-place', 'writes the files instead of standard output', false)
  .action((paths: string[], { inPlace }: { inPlace: boolean }) =>
    transformFiles(paths, inPlace, uninjectText),
  )

cluster(program.command('check'))
  .description(
    'looks whether the mesh can be installed and whether it works; exit code 1 when something fails',
  )
  .option('--json', 'prints one JSON object', false)
  .action(async (options: ClusterOptions & { json: boolean }) => {
    const findings = await check(clientOf(options), options.meshNamespace)
    const failed = findings.some((f) => f.status === 'failure')
    if (options.json) console.log(JSON.stringify({ ok: !failed, findings }))
    else console.log(table(findings, process.stdout.isTTY === true && process.env.NO_COLOR === undefined))
    process.exitCode = failed ? 1 : 0
  })

program
  .command('version')
  .description('prints the version')
  .action(() => console.log(version))

program
  .command('completion')
  .description('prints a completion script: source <(edgemesh completion)')
  .action(() => {
    const names = program.commands.map((c) => c.name()).join(' ')
    console.log(
      `_edgemesh() {\n  local current="\${COMP_WORDS[COMP_CWORD]}"\n  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "${names} --help --version" -- "$current"))\n  else COMPREPLY=($(compgen -f -- "$current")); fi\n}\ncomplete -F _edgemesh edgemesh`,
    )
  })

try {
  await program.parseAsync()
} catch (error) {
  console.error(sentenceOf(error))
  process.exit(1)
}

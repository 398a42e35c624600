# ruff: noqa: E501 (one task a line)
"""Write text-to-shell.jsonl: requests in plain words, each with one Linux shell command."""

import json
import random
import re
from pathlib import Path

SEED = 11
PER_TASK = 4
ROWS = 260

SLOTS: dict[str, list[str]] = {
    "dir": ["src", "photos", "backup", "logs", "docs", "reports", "music", "build", "data/raw"],
    "dir2": ["archive", "/mnt/usb", "old", "~/keep", "/srv/share", "staging"],
    "file": [
        "notes.txt",
        "report.md",
        "app.log",
        "access.log",
        "todo.txt",
        "server.log",
        "main.py",
    ],
    "file2": ["copy.txt", "result.txt", "draft.md", "new.log", "sorted.txt"],
    "csv": ["sales.csv", "users.csv", "orders.csv", "scores.csv"],
    "json": ["config.json", "package.json", "response.json"],
    "ext": ["jpg", "py", "log", "txt", "mp3", "csv", "tmp", "md"],
    "ext2": ["bak", "png", "old", "html"],
    "word": ["error", "TODO", "timeout", "invoice", "deprecated", "password", "retry"],
    "word2": ["warning", "FIXME", "success", "receipt", "legacy"],
    "n": ["3", "5", "7", "10", "20", "50"],
    "big": ["10", "50", "100", "500"],
    "port": ["80", "443", "3000", "5432", "8080"],
    "host": ["example.org", "files.example.net", "10.0.0.5", "db.internal"],
    "user": ["ana", "deploy", "kofi", "mei"],
    "proc": ["nginx", "python3", "postgres", "firefox", "node"],
    "svc": ["nginx", "ssh", "cron", "docker", "postgresql"],
    "branch": ["main", "feature/login", "fix-typo", "release"],
    "pkg": ["curl", "htop", "jq", "tmux", "git"],
    "tar": ["site.tar.gz", "backup.tar.gz", "photos.tar.gz"],
    "zip": ["project.zip", "pictures.zip", "data.zip"],
    "var": ["EDITOR", "API_KEY", "LANG", "DATABASE_URL"],
    "col": ["1", "2", "3", "4"],
}

# request | another way to ask ... => command. {slot} is filled the same on both sides.
TASKS = """
list everything in {dir}, hidden files too | show all files in {dir} including the dotfiles => ls -la {dir}
which files in {dir} are the biggest? show {n} | the {n} largest files under {dir} => find {dir} -type f -printf '%s %p\\n' | sort -nr | head -n {n}
list {dir} with the newest first | sort the contents of {dir} by when they were changed => ls -lt {dir}
how many files are there in {dir}, subfolders included? | count all files below {dir} => find {dir} -type f | wc -l
make the folder {dir}/2026 and whatever is missing above it | create {dir}/2026 even if {dir} does not exist => mkdir -p {dir}/2026
copy {dir} with all that is in it to {dir2} | duplicate the folder {dir} into {dir2} => cp -r {dir} {dir2}
copy {file} to {dir2} but keep its dates and rights | back up {file} into {dir2} without changing its timestamps => cp -p {file} {dir2}
rename {file} to {file2} | I want {file} to be called {file2} => mv {file} {file2}
move all .{ext} files to {dir2} | put every {ext} file of this folder into {dir2} => mv *.{ext} {dir2}
throw away all .{ext} files in {dir} and below | delete every {ext} file anywhere under {dir} => find {dir} -type f -name '*.{ext}' -delete
ask me before deleting each .{ext} file here | remove the {ext} files, but let me confirm each => rm -i *.{ext}
delete the folder {dir} and everything inside | get rid of {dir} completely => rm -r {dir}
remove the empty folders under {dir} | which command cleans empty directories out of {dir}? => find {dir} -type d -empty -delete
find files named {file} anywhere in my home | where in my home folder is {file}? => find ~ -type f -name '{file}'
find .{ext} files changed in the last {n} days | what {ext} files did I touch within {n} days? => find . -name '*.{ext}' -mtime -{n}
find files larger than {big} MB in {dir} | anything above {big} megabytes in {dir}? => find {dir} -type f -size +{big}M
find everything in {dir} that belongs to {user} | which files under {dir} does {user} own? => find {dir} -user {user}
search for {word} in all files under {dir} | which lines below {dir} mention {word}? => grep -rn '{word}' {dir}
show lines of {file} with {word}, upper or lower case | look for {word} in {file} and ignore case => grep -i '{word}' {file}
count the lines with {word} in {file} | how often does a line of {file} contain {word}? => grep -c '{word}' {file}
show the lines of {file} that do not contain {word} | everything in {file} except lines with {word} => grep -v '{word}' {file}
which .{ext} files contain {word}? only the names | list {ext} files that have {word} in them => grep -l '{word}' *.{ext}
show {word} in {file} with {n} lines around each hit | give me {n} lines of context for {word} in {file} => grep -C {n} '{word}' {file}
lines of {file} with either {word} or {word2} | find {word} or {word2} in {file} => grep -E '{word}|{word2}' {file}
first {n} lines of {file} | show how {file} begins, {n} lines => head -n {n} {file}
last {n} lines of {file} | the end of {file}, {n} lines please => tail -n {n} {file}
keep showing new lines of {file} as they are written | follow {file} live => tail -f {file}
how many lines does {file} have? | count lines in {file} => wc -l {file}
how many words are in {file}? | word count of {file} => wc -w {file}
replace {word} with {word2} everywhere in {file} | change every {word} to {word2} in {file}, in place => sed -i 's/{word}/{word2}/g' {file}
delete all lines with {word} from {file} | drop the lines of {file} that contain {word} => sed -i '/{word}/d' {file}
print line {n} of {file} | just the {n}th line of {file} => sed -n '{n}p' {file}
sort {file} and drop repeated lines, save as {file2} | unique sorted lines of {file} into {file2} => sort -u {file} > {file2}
the {n} most common lines in {file} | which lines of {file} repeat the most? top {n} => sort {file} | uniq -c | sort -nr | head -n {n}
column {col} of {csv} | print only field {col} of the comma-separated {csv} => cut -d, -f{col} {csv}
add up column {col} of {csv} | what is the sum of field {col} in {csv}? => awk -F, '{{s += ${col}}} END {{print s}}' {csv}
average of column {col} in {csv}, without the header | mean of field {col} of {csv}, skip the first line => awk -F, 'NR > 1 {{s += ${col}; n++}} END {{print s / n}}' {csv}
rows of {csv} where column {col} is above {big} | which lines of {csv} have more than {big} in field {col}? => awk -F, '${col} > {big}' {csv}
turn {file} into capitals | make all of {file} upper case on screen => tr '[:lower:]' '[:upper:]' < {file}
remove Windows line ends from {file} | strip the carriage returns out of {file} => sed -i 's/\\r$//' {file}
join {file} and {file2} into all.txt | put {file} and then {file2} in one file all.txt => cat {file} {file2} > all.txt
what differs between {file} and {file2}? | compare {file} with {file2} in unified form => diff -u {file} {file2}
are {file} and {file2} the same byte for byte? | check whether {file2} is identical to {file} => cmp {file} {file2}
fingerprint of {file} | SHA-256 sum of {file} => sha256sum {file}
pack {dir} into {tar} | make a compressed tarball {tar} of {dir} => tar -czf {tar} {dir}
unpack {tar} into {dir2} | extract {tar} to {dir2} => tar -xzf {tar} -C {dir2}
what is inside {tar}? do not unpack | list the contents of {tar} => tar -tzf {tar}
zip {dir} as {zip} | put the folder {dir} in {zip} => zip -r {zip} {dir}
unzip {zip} to {dir2} | extract {zip} in the folder {dir2} => unzip {zip} -d {dir2}
compress {file} and keep the original | gzip {file} but do not delete it => gzip -k {file}
how much room does {dir} take? | total size of {dir}, readable => du -sh {dir}
size of each folder in {dir}, biggest last | disk use per item in {dir}, sorted => du -sh {dir}/* | sort -h
how full are my disks? | free space on all file systems => df -h
how much memory is free? | show RAM use in readable units => free -h
what is using port {port}? | which process listens on {port}? => ss -ltnp 'sport = :{port}'
end the process {proc} politely | ask every {proc} to quit => pkill -x {proc}
process ids of {proc} | is {proc} running, and under which pid? => pgrep -a {proc}
the {n} processes that eat most memory | top {n} by memory => ps aux --sort=-%mem | head -n $(({n} + 1))
what does {user} have running? | all processes of {user} => ps -u {user}
run backup.sh in the background and keep it after logout | start backup.sh so that closing the terminal does not end it => nohup ./backup.sh &
is {host} up? try {n} times | ping {host} {n} times => ping -c {n} {host}
download https://{host}/{file} under its own name | fetch {file} from {host} over https => curl -O https://{host}/{file}
only the headers of https://{host} | what headers does https://{host} send? => curl -I https://{host}
copy {file} to {user}'s home on {host} | send {file} to {host} as {user} over ssh => scp {file} {user}@{host}:
log in to {host} as {user} on port 2222 | ssh to {user} at {host}, port 2222 => ssh -p 2222 {user}@{host}
mirror {dir} to {dir2} and delete what is gone | make {dir2} an exact copy of {dir} => rsync -a --delete {dir}/ {dir2}/
what would syncing {dir} to {dir2} change? do nothing yet | dry run of copying {dir} to {dir2} with rsync => rsync -avn {dir}/ {dir2}/
which address does {host} resolve to? | look up the IP of {host} => dig +short {host}
my own IP addresses | show the addresses of this machine => ip -brief address
make deploy.sh executable | let me run deploy.sh => chmod +x deploy.sh
only I may read {file} | make {file} private to its owner => chmod 600 {file}
give {dir} and all in it to {user} | make {user} the owner of everything in {dir} => sudo chown -R {user} {dir}
link {file} as {file2} | create a symbolic link {file2} that points to {file} => ln -s {file} {file2}
where does the link {file} point to in the end? | resolve {file} to its real path => readlink -f {file}
restart {svc} | the service {svc} has to be started anew => sudo systemctl restart {svc}
does {svc} run? | status of the service {svc} => systemctl status {svc}
start {svc} at every boot | have {svc} come up when the machine boots => sudo systemctl enable {svc}
log of {svc} since this morning | what did {svc} write today? => journalctl -u {svc} --since today
install {pkg} on Debian | get me {pkg} with apt => sudo apt install {pkg}
which package brought /usr/bin/{pkg}? | what Debian package owns /usr/bin/{pkg}? => dpkg -S /usr/bin/{pkg}
set {var} to test for this command only: make | run make with {var}=test => {var}=test make
what is {var} set to? | print the environment variable {var} => printenv {var}
show my last {n} commands | what did I type lately? {n} lines => history {n}
switch to a new git branch {branch} | create the branch {branch} and go there => git switch -c {branch}
last {n} commits, one line each | short git history, {n} entries => git log --oneline -n {n}
undo my changes to {file} that are not committed | bring {file} back to the last commit => git restore {file}
who last changed each line of {file}? | blame for {file} => git blame {file}
what is staged for the next commit? | diff of the index against HEAD => git diff --staged
take {file} out of the next commit but keep my edits | unstage {file} => git restore --staged {file}
commits that touched {file} in the last {n} days | git history of {file}, {n} days back => git log --since='{n} days ago' -- {file}
rename all .{ext} here to .{ext2} | change the ending of every {ext} file to {ext2} => for f in *.{ext}; do mv "$f" "${{f%.{ext}}}.{ext2}"; done
pretty-print {json} | show {json} with indentation => jq . {json}
the field name of {json}, without quotes | read .name out of {json} as raw text => jq -r .name {json}
today's date as 2026-11-22 | print the date, year first => date +%F
the time in Tokyo | what time is it in Tokyo now? => TZ=Asia/Tokyo date
run sync.sh every night at 2 | which crontab line starts sync.sh at 02:00 daily? => 0 2 * * * sync.sh
run {proc} but give up after {n} seconds | let {proc} work for {n} s at most => timeout {n} {proc}
how long does make take? | time a make => time make
show {file} with line numbers | number the lines of {file} => cat -n {file}
split {file} into pieces of {big} lines | cut {file} up, {big} lines each => split -l {big} {file}
both show and save the output of make as build.log | run make and keep a copy of what it prints in build.log => make 2>&1 | tee build.log
run make and hide its errors | make, but throw stderr away => make 2>/dev/null
print a random line of {file} | pick any one line from {file} => shuf -n 1 {file}
"""
LEADS = ["", "", "", "", "How do I ", "Command to ", "Please ", "I need to ", "In bash: "]


def rows() -> list[dict[str, str]]:
    chance = random.Random(SEED)
    found: dict[str, dict[str, str]] = {}
    for line in TASKS.strip().splitlines():
        asked, _, command = line.rpartition(" => ")
        for place in range(PER_TASK):
            said = asked.split(" | ")[place % 2]
            names = sorted(set(re.findall(r"(?<!\{)\{(\w+)\}(?!\})", said + command)))
            filled = {name: chance.choice(SLOTS[name]) for name in names if name in SLOTS}
            request = said.format(**filled)
            is_order = re.match(
                "(list|make|copy|move|delete|remove|find|search|show|count|print|sort|add|turn|join"
                "|pack|unpack|zip|compress|end|run|download|log|mirror|give|link|restart|start|set"
                "|switch|undo|take|rename|split|replace|unzip|install) ",
                request,
            )
            lead = chance.choice(LEADS) if is_order else ""
            request = lead + request
            request = request[0].upper() + request[1:] if chance.random() < 0.8 else request
            if lead.startswith("How") and not request.endswith("?"):
                request += "?"
            written = command.format(**filled)
            found.setdefault(request.lower(), {"prompt": request, "completion": written})
    made = list(found.values())
    chance.shuffle(made)
    return made[:ROWS]


if __name__ == "__main__":
    target = Path(__file__).with_name("text-to-shell.jsonl")
    with target.open("w", encoding="utf-8") as file:
        for row in rows():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

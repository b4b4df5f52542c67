# Waits inside a root for forge's end of a pipe to close, and buries processes whose parents are dead. With
# the first process everything ends that runs there.
exec 3<&0 </dev/null
echo ready
cat <&3 >/dev/null &
exec 3<&-
wait "$!"
